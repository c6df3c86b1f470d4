"""Tiny ``transformers`` models with random weights: the oracle for weight tables."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 112,
    "max_position_embeddings": 128,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": 96, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}

ROPE_SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
    },
}

_THETA = {"rope_type": "default", "rope_theta": 5e5}
_YARN = {**ROPE_SCALINGS["yarn"], "rope_theta": 5e5}
_LINEAR = {**ROPE_SCALINGS["linear"], "rope_theta": 1e4}

# Name -> model_type and its configuration; each row turns on something another leaves off.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "gpt2-untied-inner": ("gpt2", {**_GPT2, "n_inner": 96, "tie_word_embeddings": False}),
    "llama": ("llama", _GROUPED),
    "llama-tied": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {**_GROUPED, "head_dim": 32, "num_key_value_heads": 1}),
    "llama-gelu": ("llama", {**_SMALL, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3}),
    **{
        f"llama-{name}": ("llama", {**_GROUPED, "rope_parameters": {"rope_theta": 5e5, **scaling}})
        for name, scaling in ROPE_SCALINGS.items()
    },
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 8}),
    "mistral-full": ("mistral", {**_GROUPED, "sliding_window": None}),
    "mixtral": (
        "mixtral",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "qwen2": ("qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen2-windows": (
        "qwen2",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-biases": ("qwen3", {**_GROUPED, "head_dim": 16, "attention_bias": True}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **_GROUPED,
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": False,
        },
    ),
    "stablelm": ("stablelm", {**_GROUPED, "use_qkv_bias": True}),
    "stablelm-parallel": (
        "stablelm",
        {**_GROUPED, "use_parallel_residual": True, "partial_rotary_factor": 0.5},
    ),
    "gpt_neox": ("gpt_neox", {**_SMALL, "hidden_act": "gelu_pytorch_tanh"}),
    "gpt_neox-serial": (
        "gpt_neox",
        {
            **_SMALL,
            "hidden_act": "gelu_new",
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rotary_pct": 1.0,
        },
    ),
    "pythia": ("gpt_neox", {**_SMALL, "hidden_act": "gelu", "rotary_pct": 0.25}),
    "gpt2-gelu": ("gpt2", {**_GPT2, "activation_function": "gelu"}),
    "llama-gelu-erf": ("llama", {**_GROUPED, "hidden_act": "gelu"}),
    "smollm2": (
        "llama",
        {**_SMALL, "num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    ),
    "llama3.2": (
        "llama",
        {**_GROUPED, "head_dim": 16, "tie_word_embeddings": True, "attention_bias": False}
        | {"rope_parameters": {"rope_theta": 5e5, **ROPE_SCALINGS["llama3"]}},
    ),
    "qwen2.5": (
        "qwen2",
        {**_GROUPED, "tie_word_embeddings": True, "use_sliding_window": False}
        | {"sliding_window": 32, "max_window_layers": 2, "rms_norm_eps": 1e-6}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2-last-layers": (
        "qwen2",
        {**_GROUPED, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8}
        | {"max_window_layers": 3},
    ),
    "smollm3": ("smollm3", {**_GROUPED, "num_hidden_layers": 4, "tie_word_embeddings": True}),
    "smollm3-windows": (
        "smollm3",
        {**_GROUPED, "num_hidden_layers": 3, "no_rope_layers": [0, 1, 1], "attention_bias": True}
        | {"use_sliding_window": True, "sliding_window": 8, "rope_parameters": _YARN},
    ),
    "olmo2": ("olmo2", {**_GROUPED, "tie_word_embeddings": False}),
    "olmo2-tied": ("olmo2", {**_GROUPED, "tie_word_embeddings": True, "attention_bias": True}),
    "olmo3": (
        "olmo3",
        {**_GROUPED, "num_hidden_layers": 5, "sliding_window": 8, "tie_word_embeddings": False}
        | {"rope_parameters": {"full_attention": _YARN, "sliding_attention": _THETA}},
    ),
    "olmo3-full": (
        "olmo3",
        {**_GROUPED, "layer_types": ["full_attention"] * 2}
        | {"rope_parameters": {"full_attention": _THETA, "sliding_attention": _THETA}},
    ),
    "gemma": ("gemma", {**_GROUPED, "head_dim": 32, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": (
        "gemma2",
        {**_GROUPED, "num_hidden_layers": 4, "head_dim": 32, "query_pre_attn_scalar": 24}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0, "sliding_window": 8},
    ),
    "gemma2-plain": (
        "gemma2",
        {**_GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32, "attention_bias": True}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        | {"layer_types": ["full_attention"] * 2, "tie_word_embeddings": False}
        | {"rope_parameters": {"rope_theta": 1e4, **ROPE_SCALINGS["linear"]}},
    ),
    "gemma3": (
        "gemma3_text",
        {**_GROUPED, "num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 24}
        | {"final_logit_softcapping": 4.0, "sliding_window": 8}
        | {"rope_parameters": {"full_attention": _LINEAR, "sliding_attention": _THETA}},
    ),
    "gemma3-alike": (
        "gemma3_text",
        {**_GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
        | {"layer_types": ["full_attention", "sliding_attention"]}
        | {"rope_parameters": {"full_attention": _LINEAR, "sliding_attention": _LINEAR}},
    ),
    "phi3": ("phi3", {**_GROUPED, "sliding_window": 8}),
    "phi3-partial": (
        "phi3",
        {**_GROUPED, "tie_word_embeddings": True, "partial_rotary_factor": 0.5},
    ),
}


def reference_model(case: str) -> PreTrainedModel:
    """A random model in evaluation mode, float32."""
    model_type, options = CASES[case]
    torch.manual_seed(0)
    return randomised(
        AutoModelForCausalLM.from_config(
            CONFIG_MAPPING[model_type](
                **options, bos_token_id=None, eos_token_id=None, pad_token_id=None
            )
        )
    )


def randomised(model: Any) -> Any:
    """Every weight drawn anew: fresh norms and biases are ones and zeros, which hide mistakes."""
    is_gemma = type(model).__name__.startswith("Gemma")  # whose norms add the one themselves
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.15)
            if ("norm" in name or "ln_" in name) and not is_gemma:
                parameter += 1.0
    return model.eval()


def token_ids(vocab_size: int, length: int = 40) -> torch.Tensor:
    """(2, length) int64."""
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(7))
