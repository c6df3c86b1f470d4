"""Llama and its close kin: rotary positions, RMSNorm, SwiGLU, grouped-query attention.

They share the weight table. Mistral adds the sliding window, Mixtral a mixture of experts, Qwen2
biases on query, key and value, Qwen3 norms on query and key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lightning_llm.interop.hf.family import Family, expect
from lightning_llm.interop.hf.layout import TensorMap, per_expert, same, separate_qkv
from lightning_llm.interop.hf.rope import rope_from_hf, rope_to_hf
from lightning_llm.models import TransformerConfig

_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class _ExpertNames:
    """Where an architecture keeps its mixture of experts, under ``model.layers.{i}``."""

    block: str
    gate: str
    up: str
    down: str


_MIXTRAL_EXPERTS = _ExpertNames("block_sparse_moe", gate="w1", up="w3", down="w2")
_QWEN_EXPERTS = _ExpertNames("mlp", gate="gate_proj", up="up_proj", down="down_proj")


def _tensors(config: TransformerConfig, experts: _ExpertNames | None = None) -> Iterator[TensorMap]:
    yield same("embedding.weight", "model.embed_tokens.weight")
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight")
        yield from _attention(config, f"{ours}.attention", f"{theirs}.self_attn")
        yield same(f"{ours}.mlp_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        if experts is not None:
            yield from _experts(config, f"{ours}.mlp", theirs, experts)
        else:
            yield from _mlp(config, f"{ours}.mlp", f"{theirs}.mlp")
    yield same("final_norm.weight", "model.norm.weight")
    if not config.tie_embeddings:
        yield same("head.weight", "lm_head.weight")


def _attention(config: TransformerConfig, ours: str, theirs: str) -> Iterator[TensorMap]:
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    for kind in ("weight", "bias") if config.attention_bias else ("weight",):
        names = (f"{theirs}.q_proj.{kind}", f"{theirs}.k_proj.{kind}", f"{theirs}.v_proj.{kind}")
        yield separate_qkv(f"{ours}.qkv.{kind}", names, config.n_kv_heads, config.head_dim)
    yield same(f"{ours}.out.weight", f"{theirs}.o_proj.weight")
    if config.attention_out_bias:
        yield same(f"{ours}.out.bias", f"{theirs}.o_proj.bias")
    if config.qk_norm:
        yield same(f"{ours}.q_norm.weight", f"{theirs}.q_norm.weight")
        yield same(f"{ours}.k_norm.weight", f"{theirs}.k_norm.weight")


def _mlp(config: TransformerConfig, ours: str, theirs: str) -> Iterator[TensorMap]:
    for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
        for name in ("gate", "up", "down"):
            yield same(f"{ours}.{name}.{kind}", f"{theirs}.{name}_proj.{kind}")


def _experts(
    config: TransformerConfig, ours: str, theirs: str, names: _ExpertNames
) -> Iterator[TensorMap]:
    yield same(f"{ours}.router.weight", f"{theirs}.{names.block}.gate.weight")
    for name in ("gate", "up", "down"):
        pattern = f"{theirs}.{names.block}.experts.{{expert}}.{getattr(names, name)}.weight"
        yield per_expert(f"{ours}.experts.{name}", pattern, config.n_experts)


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    return {
        "head_dim": config.head_dim,
        "hidden_act": _ACTIVATIONS[config.mlp],
        **rope_to_hf(config),
    }


def _from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    activations = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    return {
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "norm": "rmsnorm",
        "mlp": expect(hf, "hidden_act", activations),
        **rope_from_hf(hf),
    }


def _to_qwen(config: TransformerConfig) -> dict[str, Any]:
    windows = [config.layer_window(layer) for layer in range(config.n_layers)]
    return {
        **_to_hf(config),
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": [_FULL if window is None else _SLIDING for window in windows],
    }


def _from_qwen2(hf: dict[str, Any]) -> dict[str, Any]:
    bias = {"attention_bias": True, "attention_out_bias": False}
    return {**_from_hf(hf), **_windows_from_qwen(hf), **bias}


def _from_qwen3(hf: dict[str, Any]) -> dict[str, Any]:
    return {**_from_hf(hf), **_windows_from_qwen(hf), "qk_norm": True}


def _windows_from_qwen(hf: dict[str, Any]) -> dict[str, Any]:
    """Which layers have a sliding window: all, none, or all but every n-th."""
    kinds = hf["layer_types"]
    if _SLIDING not in kinds:
        return {"sliding_window": None}
    for pattern in (None, *range(2, len(kinds) + 1)):
        full = [pattern is not None and (layer + 1) % pattern == 0 for layer in range(len(kinds))]
        if kinds == [_FULL if whole else _SLIDING for whole in full]:
            return {"sliding_window": hf["sliding_window"], "sliding_window_pattern": pattern}
    raise ValueError(
        f"config.json: layer_types={kinds} has no counterpart here; supported: a window in "
        "every layer, in none, or in all but every n-th"
    )


def _whole_heads(config: TransformerConfig) -> list[str]:
    if config.dim % config.n_heads == 0:
        return []
    return [f"n_heads={config.n_heads} (llama needs it to divide dim={config.dim})"]


def _equal_biases(config: TransformerConfig) -> list[str]:
    if config.attention_bias == config.attention_out_bias:
        return []
    return [
        f"attention_out_bias={config.attention_out_bias} (needed equal to attention_bias="
        f"{config.attention_bias})"
    ]


def _some_experts(config: TransformerConfig) -> list[str]:
    return [] if config.n_experts else ["n_experts=0 (mixtral and qwen3_moe have some)"]


_SHARED_REQUIREMENTS = {
    "positions": ("rope",),
    "rotary_fraction": (1.0,),
    "norm": ("rmsnorm",),
    "mlp": ("swiglu", "geglu"),
    "attention_score": ("dot",),
    "logit_softcap": (None,),
    "embedding_scale": (1.0,),
    "parallel_residual": (False,),
}
_SHARED_FIELDS = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_DENSE = {"n_experts": (0,)}
_UNBIASED = {"attention_bias": (False,), "attention_out_bias": (False,), "mlp_bias": (False,)}
_ONE_WINDOW = {"sliding_window_pattern": (None,)}
_SHARED_UNUSED = frozenset({"norm_bias", "shared_norm"})
_DENSE_UNUSED = _SHARED_UNUSED | {"n_experts_per_token", "normalize_expert_weights"}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    requires={**_SHARED_REQUIREMENTS, **_DENSE, "qk_norm": (False,), "sliding_window": (None,)},
    fields={**_SHARED_FIELDS, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    converts=frozenset({"head_dim", "rope_theta", "rope_scaling", "attention_out_bias"}),
    unused=_DENSE_UNUSED | {"sliding_window_pattern"},
    to_hf=_to_hf,
    from_hf=_from_hf,
    tensors=_tensors,
    limits=lambda config: _whole_heads(config) + _equal_biases(config),
    converted=frozenset({"head_dim", "hidden_act", "rope_parameters"}),
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    requires={**_SHARED_REQUIREMENTS, **_DENSE, **_UNBIASED, **_ONE_WINDOW, "qk_norm": (False,)},
    fields={**_SHARED_FIELDS, "sliding_window": "sliding_window"},
    converts=frozenset({"head_dim", "rope_theta", "rope_scaling"}),
    unused=_DENSE_UNUSED,
    limits=lambda config: [],
)

MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    requires={
        **_SHARED_REQUIREMENTS,
        **_UNBIASED,
        **_ONE_WINDOW,
        "qk_norm": (False,),
        "normalize_expert_weights": (True,),
    },
    fields={
        **MISTRAL.fields,
        "n_experts": "num_local_experts",
        "n_experts_per_token": "num_experts_per_tok",
        "router_aux_loss_weight": "router_aux_loss_coef",
    },
    unused=_SHARED_UNUSED,
    tensors=partial(_tensors, experts=_MIXTRAL_EXPERTS),
    limits=_some_experts,
)

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    requires={
        **_SHARED_REQUIREMENTS,
        **_DENSE,
        "qk_norm": (False,),
        "attention_bias": (True,),
        "attention_out_bias": (False,),
        "mlp_bias": (False,),
    },
    fields=_SHARED_FIELDS,
    converts=frozenset(
        {"head_dim", "rope_theta", "rope_scaling", "sliding_window", "sliding_window_pattern"}
    ),
    unused=_DENSE_UNUSED,
    to_hf=_to_qwen,
    from_hf=_from_qwen2,
    limits=lambda config: [],
    # layer_types says the same; transformers fills it in where a file has only these.
    neutral=frozenset({"max_window_layers", "use_sliding_window"}),
    converted=LLAMA.converted | {"layer_types", "sliding_window"},
)

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    requires={**_SHARED_REQUIREMENTS, **_DENSE, "qk_norm": (True,), "mlp_bias": (False,)},
    fields={**_SHARED_FIELDS, "attention_bias": "attention_bias"},
    converts=QWEN2.converts | {"attention_out_bias"},
    from_hf=_from_qwen3,
    limits=_equal_biases,
)

QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    requires={**_SHARED_REQUIREMENTS, **_ONE_WINDOW, "qk_norm": (True,), "mlp_bias": (False,)},
    fields={
        **_SHARED_FIELDS,
        "attention_bias": "attention_bias",
        "hidden_dim": "moe_intermediate_size",
        "n_experts": "num_experts",
        "n_experts_per_token": "num_experts_per_tok",
        "normalize_expert_weights": "norm_topk_prob",
        "router_aux_loss_weight": "router_aux_loss_coef",
        "sliding_window": "sliding_window",
    },
    converts=LLAMA.converts,
    unused=_SHARED_UNUSED,
    to_hf=lambda config: {
        **_to_hf(config),
        "use_sliding_window": config.sliding_window is not None,
    },
    from_hf=lambda hf: {**_from_hf(hf), "qk_norm": True},
    tensors=partial(_tensors, experts=_QWEN_EXPERTS),
    limits=lambda config: _equal_biases(config) + _some_experts(config),
    # Read by dense layers alone, and those are refused (mlp_only_layers, decoder_sparse_step).
    neutral=QWEN3.neutral | {"intermediate_size"},
)
