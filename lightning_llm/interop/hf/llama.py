"""Llama and its close kin: rotary positions, RMSNorm, SwiGLU, grouped-query attention.

They share the weight table; Llama has biases of attention together, which are zeros where a
configuration of ours has none, and read back as biases. Mistral adds the sliding window, Mixtral a
mixture of experts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lightning_llm.interop.hf.decoder_tensors import ExpertNames, decoder_tensors
from lightning_llm.interop.hf.family import Family, expect
from lightning_llm.interop.hf.rope import rope_from_hf, rope_to_hf
from lightning_llm.models import TransformerConfig

ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh", "geglu_erf": "gelu"}
_MIXTRAL_EXPERTS = ExpertNames("block_sparse_moe", gate="w1", up="w3", down="w2")


def activation_from_hf(hf: dict[str, Any], name: str = "hidden_act") -> str:
    """Our ``mlp`` of their activation function in a gated feed-forward layer.

    Raises:
        ValueError: One that we do not have.
    """
    ours = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    return expect(hf, name, {**ours, "gelu_new": "geglu", "swish": "swiglu"})


def llama_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Head width, activation and positions of a configuration."""
    return {
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATIONS[config.mlp],
        **rope_to_hf(config),
    }


def llama_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`llama_to_hf`."""
    return {
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "norm": "rmsnorm",
        "mlp": activation_from_hf(hf),
        **rope_from_hf(hf),
    }


def _whole_heads(config: TransformerConfig) -> list[str]:
    if config.dim % config.n_heads == 0:
        return []
    return [f"n_heads={config.n_heads} (llama needs it to divide dim={config.dim})"]


def equal_biases(config: TransformerConfig) -> list[str]:
    """Problem of architectures with one switch for both biases of attention."""
    if config.attention_bias == config.attention_out_bias:
        return []
    return [
        f"attention_out_bias={config.attention_out_bias} (needed equal to attention_bias="
        f"{config.attention_bias})"
    ]


def _output_bias(config: TransformerConfig) -> list[str]:
    """The same where a missing bias of the output can be zeros, and the other ones cannot."""
    return equal_biases(config) if config.attention_out_bias else []


def some_experts(config: TransformerConfig) -> list[str]:
    """Problem of architectures that are mixtures of experts."""
    return [] if config.n_experts else ["n_experts=0 (mixtral and qwen3_moe have some)"]


SHARED_REQUIREMENTS = {
    "positions": ("rope",),
    "rotary_fraction": (1.0,),
    "norm": ("rmsnorm",),
    "mlp": tuple(ACTIVATIONS),
    "attention_score": ("dot",),
    "logit_softcap": (None,),
    "embedding_scale": (1.0,),
    "parallel_residual": (False,),
}
SHARED_FIELDS = {
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
DENSE = {"n_experts": (0,)}
_UNBIASED = {"attention_bias": (False,), "attention_out_bias": (False,), "mlp_bias": (False,)}
ONE_WINDOW = {"sliding_window_pattern": (None,)}
SHARED_UNUSED = frozenset({"norm_bias", "shared_norm"})
DENSE_UNUSED = SHARED_UNUSED | {"n_experts_per_token", "normalize_expert_weights"}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    requires={**SHARED_REQUIREMENTS, **DENSE, "qk_norm": (False,), "sliding_window": (None,)},
    fields={**SHARED_FIELDS, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    converts=frozenset({"head_dim", "rope_theta", "rope_scaling", "attention_out_bias"}),
    unused=DENSE_UNUSED | {"sliding_window_pattern"},
    to_hf=llama_to_hf,
    from_hf=llama_from_hf,
    tensors=partial(decoder_tensors, biases_together=True),
    limits=lambda config: _whole_heads(config) + _output_bias(config),
    converted=frozenset({"head_dim", "hidden_act", "rope_parameters"}),
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    tensors=decoder_tensors,
    requires={**SHARED_REQUIREMENTS, **DENSE, **_UNBIASED, **ONE_WINDOW, "qk_norm": (False,)},
    fields={**SHARED_FIELDS, "sliding_window": "sliding_window"},
    converts=frozenset({"head_dim", "rope_theta", "rope_scaling"}),
    unused=DENSE_UNUSED,
    limits=lambda config: [],
)

MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    requires={
        **SHARED_REQUIREMENTS,
        **_UNBIASED,
        **ONE_WINDOW,
        "qk_norm": (False,),
        "normalize_expert_weights": (True,),
    },
    fields={
        **MISTRAL.fields,
        "n_experts": "num_local_experts",
        "n_experts_per_token": "num_experts_per_tok",
        "router_aux_loss_weight": "router_aux_loss_coef",
    },
    unused=SHARED_UNUSED,
    tensors=partial(decoder_tensors, experts=_MIXTRAL_EXPERTS),
    limits=some_experts,
)
