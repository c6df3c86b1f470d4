"""What can be wrong with a TransformerConfig, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning_llm.models.rope_scaling import rope_scaling_problems

if TYPE_CHECKING:
    from lightning_llm.models.config import TransformerConfig

GATED_MLPS = ("swiglu", "geglu")
CHOICES = {
    "positions": ("rope", "learned", "sinusoidal", "alibi", "none"),
    "norm": ("rmsnorm", "layernorm"),
    "mlp": ("swiglu", "geglu", "gelu", "relu2"),
    "attention_score": ("dot", "cosine", "additive"),
    "initializer": ("gpt2", "depth_scaled"),
}
_POSITIVE = [
    "vocab_size",
    "max_seq_len",
    "n_layers",
    "dim",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_dim",
    "rope_theta",
    "norm_eps",
    "sliding_window",
    "sliding_window_pattern",
    "embedding_scale",
    "logit_softcap",
    "n_experts_per_token",
    "init_std",
]


def find_problems(config: TransformerConfig) -> list[str]:
    """Returns every problem of ``config``, each with the value and the remedy."""
    problems = list(_type_problems(config))
    if problems:
        return problems  # comparisons below would fail on wrong types
    problems = list(_range_problems(config))
    if problems:
        return problems + list(_rope_problems(config))
    return [
        *_shape_problems(config),
        *_rope_problems(config),
        *_combination_problems(config),
    ]


def _type_problems(config: TransformerConfig) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        annotation = str(field.type)  # a string: annotations are postponed
        if value is None and annotation.endswith("| None"):
            continue
        kind = annotation.removesuffix(" | None")
        if not _is_instance(value, kind):
            yield f"{field.name}={value!r} must be {annotation}, not {type(value).__name__}"


def _is_instance(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, dict if kind.startswith("dict") else str)


def _range_problems(config: TransformerConfig) -> Iterator[str]:
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            yield f"{name}={getattr(config, name)!r} is unknown; use one of {', '.join(choices)}"
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and value <= 0:
            yield f"{name}={value} must be positive"
    for name in ("n_experts", "router_aux_loss_weight"):
        if getattr(config, name) < 0:
            yield f"{name}={getattr(config, name)} must not be negative"
    if not 0 <= config.dropout < 1:
        yield f"dropout={config.dropout} must be at least 0 and below 1"
    if not 0 < config.rotary_fraction <= 1:
        yield f"rotary_fraction={config.rotary_fraction} must be above 0 and at most 1"


def _shape_problems(config: TransformerConfig) -> Iterator[str]:
    heads, groups = config.n_heads, config.n_kv_heads or config.n_heads
    if config.head_dim is None and config.dim % heads:
        yield (
            f"dim={config.dim} is not a multiple of n_heads={heads}; "
            f"use dim={-(-config.dim // heads) * heads} or set head_dim"
        )
    if heads % groups:
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        yield (
            f"n_heads={heads} is not a multiple of n_kv_heads={groups}; "
            f"use n_kv_heads of {', '.join(map(str, divisors))}"
        )
    head_dim = config.head_dim or config.dim // heads
    rotary_dim = int(head_dim * config.rotary_fraction)
    if config.positions == "rope" and (rotary_dim % 2 or rotary_dim == 0):
        yield (
            f"RoPE rotates pairs, but head_dim={head_dim} with "
            f"rotary_fraction={config.rotary_fraction} leaves {rotary_dim} components; "
            "choose them so that the product is even and not 0"
        )
    if config.positions == "sinusoidal" and config.dim % 2:
        yield f"dim={config.dim} must be even with positions='sinusoidal'; use {config.dim + 1}"


def _rope_problems(config: TransformerConfig) -> Iterator[str]:
    if config.positions == "rope":
        if config.rope_scaling is not None:
            yield from rope_scaling_problems(config.rope_scaling)
        return
    for name, default in (("rope_scaling", None), ("rotary_fraction", 1.0)):
        if getattr(config, name) != default:
            yield (
                f"{name}={getattr(config, name)} has no effect with "
                f"positions={config.positions!r}; remove it or use positions='rope'"
            )


def _combination_problems(config: TransformerConfig) -> Iterator[str]:
    if config.shared_norm and not config.parallel_residual:
        yield "shared_norm=True needs parallel_residual=True; set both or neither"
    if config.sliding_window_pattern is not None and config.sliding_window is None:
        yield (
            f"sliding_window_pattern={config.sliding_window_pattern} needs sliding_window; "
            "set both or neither"
        )
    if config.sliding_window_pattern == 1:
        yield "sliding_window_pattern=1 leaves no layer with a window; remove sliding_window"
    if config.qk_norm and config.attention_score == "cosine":
        yield "qk_norm=True repeats what attention_score='cosine' does; remove one of them"
    if config.n_experts:
        if config.n_experts_per_token > config.n_experts:
            yield (
                f"n_experts_per_token={config.n_experts_per_token} exceeds "
                f"n_experts={config.n_experts}; use at most {config.n_experts}"
            )
        if config.mlp_bias:
            yield "mlp_bias=True is not available with n_experts > 0; set mlp_bias=False"
