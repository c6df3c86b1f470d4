"""Qwen: Llama with biases on query, key and value (Qwen2) or norms on query and key (Qwen3)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lightning_llm.interop.hf.decoder_tensors import ExpertNames, decoder_tensors
from lightning_llm.interop.hf.layer_kinds import windows_from_hf, windows_to_hf
from lightning_llm.interop.hf.llama import (
    DENSE,
    DENSE_UNUSED,
    LLAMA,
    ONE_WINDOW,
    SHARED_FIELDS,
    SHARED_REQUIREMENTS,
    SHARED_UNUSED,
    equal_biases,
    llama_from_hf,
    llama_to_hf,
    some_experts,
)
from lightning_llm.models import TransformerConfig

_QWEN_EXPERTS = ExpertNames("mlp", gate="gate_proj", up="up_proj", down="down_proj")


def _to_qwen(config: TransformerConfig) -> dict[str, Any]:
    uses_window = {"use_sliding_window": config.sliding_window is not None}
    return {**llama_to_hf(config), **uses_window, **windows_to_hf(config)}


def _from_qwen2(hf: dict[str, Any]) -> dict[str, Any]:
    bias = {"attention_bias": True, "attention_out_bias": False}
    return {**llama_from_hf(hf), **windows_from_hf(hf), **bias}


def _from_qwen3(hf: dict[str, Any]) -> dict[str, Any]:
    return {**llama_from_hf(hf), **windows_from_hf(hf), "qk_norm": True}


QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    requires={
        **SHARED_REQUIREMENTS,
        **DENSE,
        "qk_norm": (False,),
        "attention_bias": (True,),
        "attention_out_bias": (False,),
        "mlp_bias": (False,),
    },
    fields=SHARED_FIELDS,
    converts=frozenset(
        {"head_dim", "rope_theta", "rope_scaling", "sliding_window", "sliding_window_pattern"}
    ),
    unused=DENSE_UNUSED,
    to_hf=_to_qwen,
    from_hf=_from_qwen2,
    tensors=decoder_tensors,
    limits=lambda config: [],
    # layer_types says the same; transformers fills it in where a file has only these.
    neutral=frozenset({"max_window_layers", "use_sliding_window"}),
    converted=LLAMA.converted | {"layer_types", "sliding_window"},
)

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    requires={**SHARED_REQUIREMENTS, **DENSE, "qk_norm": (True,), "mlp_bias": (False,)},
    fields={**SHARED_FIELDS, "attention_bias": "attention_bias"},
    converts=QWEN2.converts | {"attention_out_bias"},
    from_hf=_from_qwen3,
    limits=equal_biases,
)

QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    requires={**SHARED_REQUIREMENTS, **ONE_WINDOW, "qk_norm": (True,), "mlp_bias": (False,)},
    fields={
        **SHARED_FIELDS,
        "attention_bias": "attention_bias",
        "hidden_dim": "moe_intermediate_size",
        "n_experts": "num_experts",
        "n_experts_per_token": "num_experts_per_tok",
        "normalize_expert_weights": "norm_topk_prob",
        "router_aux_loss_weight": "router_aux_loss_coef",
        "sliding_window": "sliding_window",
    },
    converts=LLAMA.converts,
    unused=SHARED_UNUSED,
    to_hf=lambda config: {
        **llama_to_hf(config),
        "use_sliding_window": config.sliding_window is not None,
    },
    from_hf=lambda hf: {**llama_from_hf(hf), "qk_norm": True},
    tensors=partial(decoder_tensors, experts=_QWEN_EXPERTS),
    limits=lambda config: equal_biases(config) + some_experts(config),
    # Read by dense layers alone, and those are refused (mlp_only_layers, decoder_sparse_step).
    neutral=QWEN3.neutral | {"intermediate_size"},
)
