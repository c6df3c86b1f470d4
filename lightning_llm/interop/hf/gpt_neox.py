"""GPT-NeoX: LayerNorm, partly rotated heads, GELU, biases, parallel residuals with two norms.

Its fused projection is grouped by head (query, key, value), which is our layout for as many
key-value as query heads. Pythia is of this family.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_llm.interop.hf.family import Family, expect
from lightning_llm.interop.hf.layout import TensorMap, same
from lightning_llm.interop.hf.rope import partial_rope_from_hf, partial_rope_to_hf
from lightning_llm.models import TransformerConfig

_ACTIVATIONS = {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu"}

# Module of ours -> of theirs, within a layer; all have biases but attention's may lack them.
_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}


def _tensors(config: TransformerConfig) -> Iterator[TensorMap]:
    yield same("embedding.weight", "gpt_neox.embed_in.weight")
    for i in range(config.n_layers):
        for ours, theirs in _LAYER.items():
            is_biased = config.attention_bias or ours not in ("attention.qkv", "attention.out")
            for kind in ("weight", "bias") if is_biased else ("weight",):
                yield same(f"blocks.{i}.{ours}.{kind}", f"gpt_neox.layers.{i}.{theirs}.{kind}")
    for kind in ("weight", "bias"):
        yield same(f"final_norm.{kind}", f"gpt_neox.final_layer_norm.{kind}")
    if not config.tie_embeddings:
        yield same("head.weight", "lm_head.weight")


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_act": _ACTIVATIONS[config.mlp],
        "hidden_dropout": config.dropout,
        **partial_rope_to_hf(config),
    }


def _from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    activations = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    activations["gelu_new"] = "gelu"  # the same formula
    return {
        "n_kv_heads": hf["num_attention_heads"],
        "head_dim": hf["hidden_size"] // hf["num_attention_heads"],
        "norm": "layernorm",
        "norm_bias": True,
        "mlp": expect(hf, "hidden_act", activations),
        "mlp_bias": True,
        "attention_out_bias": hf["attention_bias"],
        "dropout": hf["hidden_dropout"],
        **partial_rope_from_hf(hf),
    }


def _limits(config: TransformerConfig) -> list[str]:
    assert config.head_dim is not None
    found = []
    if config.n_kv_heads != config.n_heads:
        found.append(f"n_kv_heads={config.n_kv_heads} (gpt_neox has n_kv_heads = n_heads)")
    if config.head_dim * config.n_heads != config.dim:
        found.append(f"head_dim={config.head_dim} (gpt_neox has head_dim = dim / n_heads)")
    if config.attention_out_bias != config.attention_bias:
        found.append(
            f"attention_out_bias={config.attention_out_bias} (needed equal to attention_bias="
            f"{config.attention_bias})"
        )
    return found


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    requires={
        "positions": ("rope",),
        "rope_scaling": (None,),
        "norm": ("layernorm",),
        "norm_bias": (True,),
        "mlp": tuple(_ACTIVATIONS),
        "mlp_bias": (True,),
        "attention_score": ("dot",),
        "qk_norm": (False,),
        "sliding_window": (None,),
        "logit_softcap": (None,),
        "embedding_scale": (1.0,),
        "shared_norm": (False,),
        "n_experts": (0,),
    },
    fields={
        "vocab_size": "vocab_size",
        "max_seq_len": "max_position_embeddings",
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
        "norm_eps": "layer_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
        "init_std": "initializer_range",
        "attention_bias": "attention_bias",
        "parallel_residual": "use_parallel_residual",
    },
    converts=frozenset(
        {
            "n_kv_heads",
            "head_dim",
            "attention_out_bias",
            "rope_theta",
            "rotary_fraction",
            "dropout",
        }
    ),
    unused=frozenset({"sliding_window_pattern", "n_experts_per_token", "normalize_expert_weights"}),
    to_hf=_to_hf,
    from_hf=_from_hf,
    tensors=_tensors,
    limits=_limits,
    neutral=frozenset({"classifier_dropout", "is_decoder"}),
    converted=frozenset({"hidden_act", "hidden_dropout", "rope_parameters"}),
    stored_as={"embed_out.weight": "lm_head.weight"},
    base_prefix="gpt_neox.",
)
