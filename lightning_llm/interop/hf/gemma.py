"""Gemma: norms that multiply with one plus their weight, and embeddings times the root of D.

Gemma 2 adds norms behind the branches, soft-caps, and a window in every second layer; Gemma 3 norms
of queries and keys, and positions of their own for the layers with a window. Text models alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from lightning_llm.interop.hf.decoder_tensors import decoder_tensors
from lightning_llm.interop.hf.family import expect
from lightning_llm.interop.hf.layer_kinds import layered_windows_to_hf, windows_from_hf
from lightning_llm.interop.hf.layout import one_less
from lightning_llm.interop.hf.llama import (
    ACTIVATIONS,
    DENSE,
    LLAMA,
    SHARED_FIELDS,
    SHARED_REQUIREMENTS,
    activation_from_hf,
    equal_biases,
    llama_to_hf,
)
from lightning_llm.interop.hf.rope import (
    layered_rope_from_hf,
    layered_rope_problems,
    layered_rope_to_hf,
    rope_from_hf,
    rope_to_hf,
)
from lightning_llm.models import TransformerConfig

_SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def _from_gemma(hf: dict[str, Any]) -> dict[str, Any]:
    return {**_common_from_hf(hf), "mlp": activation_from_hf(hf), **rope_from_hf(hf)}


def _common_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    expect(hf, "use_bidirectional_attention", {None: True, False: True})
    return {
        "head_dim": hf["head_dim"],
        "norm": "rmsnorm",
        "embedding_scale": hf["hidden_size"] ** 0.5,
    }


def _to_layered(config: TransformerConfig) -> dict[str, Any]:
    assert config.head_dim is not None
    scale = config.attention_scale
    return {
        "head_dim": config.head_dim,
        "hidden_activation": ACTIVATIONS[config.mlp],
        "query_pre_attn_scalar": config.head_dim if scale is None else round(scale**-2),
        **layered_windows_to_hf(config),
    }


def _from_layered(hf: dict[str, Any]) -> dict[str, Any]:
    scalar = hf["query_pre_attn_scalar"]
    return {
        **_common_from_hf(hf),
        "mlp": activation_from_hf(hf, "hidden_activation"),
        "norm_placement": "both",
        "attention_scale": None if scalar == hf["head_dim"] else scalar**-0.5,
        **windows_from_hf(hf),
    }


def _to_gemma3(config: TransformerConfig) -> dict[str, Any]:
    return {**_to_layered(config), **layered_rope_to_hf(config)}


def _from_gemma3(hf: dict[str, Any]) -> dict[str, Any]:
    found = _from_layered(hf)
    has_window = found["sliding_window"] is not None
    return {**found, "qk_norm": True, **layered_rope_from_hf(hf, has_window=has_window)}


def _limits(config: TransformerConfig) -> list[str]:
    found = equal_biases(config)
    if not math.isclose(config.embedding_scale, config.dim**0.5, rel_tol=1e-6):
        found.append(f"embedding_scale={config.embedding_scale} (gemma has dim ** 0.5)")
    return found


def _layered_limits(config: TransformerConfig) -> list[str]:
    found = _limits(config)
    scale = config.attention_scale
    if scale is not None and not math.isclose(round(scale**-2) * scale**2, 1, rel_tol=1e-6):
        found.append(f"attention_scale={scale} (gemma has n ** -0.5 with a whole n)")
    if config.dim % config.n_heads:
        found.append(f"n_heads={config.n_heads} (gemma needs it to divide dim={config.dim})")
    return found


_REQUIREMENTS = {
    **{name: values for name, values in SHARED_REQUIREMENTS.items() if name != "embedding_scale"},
    **DENSE,
    "mlp": ("geglu", "swiglu"),
    "mlp_bias": (False,),
    "qk_norm": (False,),
}

GEMMA = replace(
    LLAMA,
    model_type="gemma",
    architecture="GemmaForCausalLM",
    requires={**_REQUIREMENTS, "sliding_window": (None,)},
    fields={**SHARED_FIELDS, "attention_bias": "attention_bias"},
    converts=LLAMA.converts | {"embedding_scale"},
    to_hf=llama_to_hf,
    from_hf=_from_gemma,
    tensors=partial(decoder_tensors, norm=one_less),
    limits=_limits,
    converted=LLAMA.converted | {"use_bidirectional_attention"},
)

GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    requires={
        **{name: values for name, values in _REQUIREMENTS.items() if name != "logit_softcap"},
        "mlp": tuple(ACTIVATIONS),
        "norm_placement": ("both",),
    },
    fields={
        **GEMMA.fields,
        "attention_softcap": "attn_logit_softcapping",
        "logit_softcap": "final_logit_softcapping",
    },
    converts=GEMMA.converts | {"attention_scale", "sliding_window", "sliding_window_pattern"},
    unused=GEMMA.unused - {"sliding_window_pattern"},
    to_hf=lambda config: {**_to_layered(config), **rope_to_hf(config)},
    from_hf=lambda hf: {**_from_layered(hf), **rope_from_hf(hf)},
    tensors=partial(decoder_tensors, norm=one_less, norms=_SANDWICH),
    limits=_layered_limits,
    converted=(GEMMA.converted - {"hidden_act"})
    | {"hidden_activation", "layer_types", "query_pre_attn_scalar", "sliding_window"},
)

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    requires={**GEMMA2.requires, "qk_norm": (True,)},
    # attn_logit_softcapping is in its configurations and in none of its computations.
    fields={name: value for name, value in GEMMA2.fields.items() if name != "attention_softcap"},
    converts=GEMMA2.converts | {"sliding_rope_theta"},
    to_hf=_to_gemma3,
    from_hf=_from_gemma3,
    limits=lambda config: _layered_limits(config) + layered_rope_problems(config),
)
