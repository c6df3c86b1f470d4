"""StableLM: Llama's layers with LayerNorm, partly rotated heads, and optionally parallel residuals.

The parallel variant has one norm in front of attention and feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lightning_llm.interop.hf.decoder_tensors import decoder_tensors
from lightning_llm.interop.hf.family import expect
from lightning_llm.interop.hf.layout import TensorMap, same
from lightning_llm.interop.hf.llama import LLAMA, SHARED_FIELDS
from lightning_llm.interop.hf.rope import partial_rope_from_hf, partial_rope_to_hf
from lightning_llm.models import TransformerConfig


def _tensors(config: TransformerConfig) -> Iterator[TensorMap]:
    for row in decoder_tensors(config):
        ours = row.ours[0]
        if config.shared_norm and ".mlp_norm." in ours:
            continue
        yield row
        if ours.endswith("norm.weight"):
            [theirs] = row.theirs
            yield same(ours.removesuffix("weight") + "bias", theirs.removesuffix("weight") + "bias")


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "hidden_dropout": config.dropout, **partial_rope_to_hf(config)}


def _from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    expect(hf, "hidden_act", {"silu": True})
    expect(hf, "qk_layernorm", {False: True})
    return {
        "head_dim": hf["hidden_size"] // hf["num_attention_heads"],
        "norm": "layernorm",
        "norm_bias": True,
        "mlp": "swiglu",
        "attention_out_bias": False,
        "shared_norm": hf["use_parallel_residual"],
        "dropout": hf["hidden_dropout"],
        **partial_rope_from_hf(hf),
    }


def _limits(config: TransformerConfig) -> list[str]:
    assert config.head_dim is not None
    found = []
    if config.head_dim * config.n_heads != config.dim:
        found.append(f"head_dim={config.head_dim} (stablelm has head_dim = dim / n_heads)")
    if config.shared_norm != config.parallel_residual:
        found.append(
            f"shared_norm={config.shared_norm} (stablelm shares the norm of parallel residuals)"
        )
    return found


STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    requires={
        "positions": ("rope",),
        "rope_scaling": (None,),
        "norm": ("layernorm",),
        "norm_bias": (True,),
        "mlp": ("swiglu",),
        "attention_score": ("dot",),
        "qk_norm": (False,),
        "sliding_window": (None,),
        "attention_out_bias": (False,),
        "mlp_bias": (False,),
        "logit_softcap": (None,),
        "embedding_scale": (1.0,),
        "n_experts": (0,),
    },
    fields={
        **SHARED_FIELDS,
        "norm_eps": "layer_norm_eps",
        "attention_bias": "use_qkv_bias",
        "parallel_residual": "use_parallel_residual",
    },
    converts=frozenset({"head_dim", "rope_theta", "rotary_fraction", "shared_norm", "dropout"}),
    unused=frozenset({"sliding_window_pattern", "n_experts_per_token", "normalize_expert_weights"}),
    to_hf=_to_hf,
    from_hf=_from_hf,
    tensors=_tensors,
    limits=_limits,
    converted=frozenset({"hidden_act", "hidden_dropout", "qk_layernorm", "rope_parameters"}),
)
