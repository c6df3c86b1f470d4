"""OLMo 2 and 3: norms behind the branches, and over the queries and keys of all heads together.

OLMo 3 adds windows, in layers whose positions are not scaled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lightning_llm.interop.hf.decoder_tensors import decoder_tensors
from lightning_llm.interop.hf.layer_kinds import layered_windows_to_hf, windows_from_hf
from lightning_llm.interop.hf.llama import (
    ACTIVATIONS,
    DENSE,
    LLAMA,
    SHARED_FIELDS,
    SHARED_REQUIREMENTS,
    activation_from_hf,
    equal_biases,
)
from lightning_llm.interop.hf.rope import (
    layered_rope_from_hf,
    layered_rope_problems,
    layered_rope_to_hf,
    rope_from_hf,
    rope_to_hf,
)
from lightning_llm.models import TransformerConfig

_AFTER = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def _to_olmo2(config: TransformerConfig) -> dict[str, Any]:
    return {**_common_to_hf(config), **rope_to_hf(config)}


def _common_to_hf(config: TransformerConfig) -> dict[str, Any]:
    assert config.head_dim is not None
    own = config.head_dim * config.n_heads != config.dim
    return {
        "hidden_act": ACTIVATIONS[config.mlp],
        **({"head_dim": config.head_dim} if own else {}),
    }


def _from_olmo2(hf: dict[str, Any]) -> dict[str, Any]:
    return {**_common_from_hf(hf), **rope_from_hf(hf)}


def _common_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        # Not declared by their configurations, and read by their models where a file has it.
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "norm": "rmsnorm",
        "norm_placement": "post",
        "mlp": activation_from_hf(hf),
        "qk_norm": True,
        "qk_norm_scope": "all_heads",
    }


def _to_olmo3(config: TransformerConfig) -> dict[str, Any]:
    return {
        **_common_to_hf(config),
        **layered_windows_to_hf(config),
        **layered_rope_to_hf(config),
    }


def _from_olmo3(hf: dict[str, Any]) -> dict[str, Any]:
    windows = windows_from_hf(hf)
    has_window = windows["sliding_window"] is not None
    return {
        **_common_from_hf(hf),
        **windows,
        **layered_rope_from_hf(hf, has_window=has_window),
    }


def _limits(config: TransformerConfig) -> list[str]:
    found = equal_biases(config)
    if config.dim % config.n_heads:
        found.append(f"n_heads={config.n_heads} (olmo needs it to divide dim={config.dim})")
    return found


_REQUIREMENTS = {
    **SHARED_REQUIREMENTS,
    **DENSE,
    "norm_placement": ("post",),
    "mlp_bias": (False,),
    "qk_norm": (True,),
    "qk_norm_scope": ("all_heads",),
}

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    requires={**_REQUIREMENTS, "sliding_window": (None,)},
    fields={**SHARED_FIELDS, "attention_bias": "attention_bias"},
    to_hf=_to_olmo2,
    from_hf=_from_olmo2,
    tensors=partial(decoder_tensors, norms=_AFTER),
    limits=_limits,
    converted=LLAMA.converted - {"head_dim"},
)

OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    requires=_REQUIREMENTS,
    converts=OLMO2.converts | {"sliding_window", "sliding_window_pattern", "sliding_rope_theta"},
    unused=OLMO2.unused - {"sliding_window_pattern"},
    to_hf=_to_olmo3,
    from_hf=_from_olmo3,
    limits=lambda config: _limits(config) + layered_rope_problems(config),
    converted=OLMO2.converted | {"layer_types", "sliding_window"},
)
