"""GPT-2: learned positions, LayerNorm, GELU, biases everywhere, ``Conv1D`` weights.

A configuration of ours without biases is exported with biases of zero, which leaves logits equal;
read back it has biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_llm.interop.hf.family import Family, expect
from lightning_llm.interop.hf.layout import (
    TensorMap,
    same,
    stacked_qkv,
    transposed,
    zeros_in_theirs,
)
from lightning_llm.models import TransformerConfig

_ACTIVATIONS = {"gelu": "gelu_new", "gelu_erf": "gelu"}


def _tensors(config: TransformerConfig) -> Iterator[TensorMap]:
    width, hidden, head_dim = config.dim, config.hidden_dim, config.head_dim
    assert hidden is not None
    assert head_dim is not None
    yield same("embedding.weight", "transformer.wte.weight")
    yield same("position_embedding.weight", "transformer.wpe.weight")
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        yield from _norm(f"{ours}.attention_norm", f"{theirs}.ln_1", config)
        qkv, c_attn = f"{ours}.attention.qkv", f"{theirs}.attn.c_attn"
        yield stacked_qkv(
            f"{qkv}.weight", f"{c_attn}.weight", config.n_heads, head_dim, transpose=True
        )
        if config.attention_bias:
            yield stacked_qkv(f"{qkv}.bias", f"{c_attn}.bias", config.n_heads, head_dim)
        else:
            yield zeros_in_theirs(f"{c_attn}.bias", 3 * width)
        biased = bool(config.attention_out_bias)
        yield from _linear(f"{ours}.attention.out", f"{theirs}.attn.c_proj", biased, width)
        yield from _norm(f"{ours}.mlp_norm", f"{theirs}.ln_2", config)
        yield from _linear(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", config.mlp_bias, hidden)
        yield from _linear(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", config.mlp_bias, width)
    yield from _norm("final_norm", "transformer.ln_f", config)
    if not config.tie_embeddings:
        yield same("head.weight", "lm_head.weight")


def _linear(ours: str, theirs: str, biased: bool, width: int) -> Iterator[TensorMap]:
    yield transposed(f"{ours}.weight", f"{theirs}.weight")
    yield _bias(f"{ours}.bias", f"{theirs}.bias", biased, width)


def _norm(ours: str, theirs: str, config: TransformerConfig) -> Iterator[TensorMap]:
    yield same(f"{ours}.weight", f"{theirs}.weight")
    yield _bias(f"{ours}.bias", f"{theirs}.bias", config.norm_bias, config.dim)


def _bias(ours: str, theirs: str, present: bool, width: int) -> TensorMap:
    return same(ours, theirs) if present else zeros_in_theirs(theirs, width)


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    dropout = config.dropout
    return {
        "activation_function": _ACTIVATIONS[config.mlp],
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
    }


def _from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    activations = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    activations["gelu_pytorch_tanh"] = "gelu"  # the same formula
    width = hf["n_embd"]
    return {
        "hidden_dim": hf["n_inner"] or 4 * width,
        "n_kv_heads": hf["n_head"],
        "head_dim": width // hf["n_head"],
        "positions": "learned",
        "norm": "layernorm",
        "norm_bias": True,
        "mlp": expect(hf, "activation_function", activations),
        "attention_bias": True,
        "mlp_bias": True,
        "dropout": hf["resid_pdrop"],
    }


def _limits(config: TransformerConfig) -> list[str]:
    assert config.head_dim is not None
    found = []
    if config.n_kv_heads != config.n_heads:
        found.append(f"n_kv_heads={config.n_kv_heads} (gpt2 has n_kv_heads = n_heads)")
    if config.head_dim * config.n_heads != config.dim:
        found.append(f"head_dim={config.head_dim} (gpt2 has head_dim = dim / n_heads)")
    return found


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    requires={
        "positions": ("learned",),
        "norm": ("layernorm",),
        "mlp": tuple(_ACTIVATIONS),
        "attention_score": ("dot",),
        "qk_norm": (False,),
        "sliding_window": (None,),
        "logit_softcap": (None,),
        "embedding_scale": (1.0,),
        "parallel_residual": (False,),
        "n_experts": (0,),
    },
    fields={
        "vocab_size": "vocab_size",
        "max_seq_len": "n_positions",
        "dim": "n_embd",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "hidden_dim": "n_inner",
        "norm_eps": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    converts=frozenset(
        {
            "n_kv_heads",
            "head_dim",
            "norm_bias",
            "attention_bias",
            "attention_out_bias",
            "mlp_bias",
            "dropout",
        }
    ),
    unused=frozenset(
        {
            "rope_theta",
            "rope_scaling",
            "rotary_fraction",
            "sliding_window_pattern",
            "shared_norm",
            "n_experts_per_token",
            "normalize_expert_weights",
        }
    ),
    to_hf=_to_hf,
    from_hf=_from_hf,
    tensors=_tensors,
    limits=_limits,
    neutral=frozenset(
        {
            "attn_pdrop",
            "embd_pdrop",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),
    converted=frozenset({"activation_function", "resid_pdrop"}),
    blind_to=frozenset({"head_dim"}),
    base_prefix="transformer.",
)
