"""What can be wrong with a TransformerConfig, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning_llm.models.rope_scaling import rope_scaling_problems

if TYPE_CHECKING:
    from lightning_llm.models.config import TransformerConfig

CHOICES = {
    "positions": ("rope", "learned", "sinusoidal", "alibi", "none"),
    "norm": ("rmsnorm", "layernorm"),
    "norm_placement": ("pre", "post", "both"),
    "mlp": ("swiglu", "geglu", "gelu", "relu2", "geglu_erf", "gelu_erf"),
    "attention_score": ("dot", "cosine", "additive"),
    "qk_norm_scope": ("head", "all_heads"),
    "initializer": ("gpt2", "depth_scaled", "zero_residual"),
}
_NOT_NEGATIVE = ("n_experts", "router_aux_loss_weight")
_FRACTIONS = ("dropout", "rotary_fraction")

Problem = tuple[str, str]  # names of the fields involved, separated by spaces; the message


def find_problems(config: TransformerConfig) -> list[str]:
    """Returns every problem of ``config``, each with the value and the remedy."""
    messages = []
    wrong: set[str] = set()
    # Later checks compare fields with each other: one already known to be wrong takes its
    # default, and what they say about it is dropped.
    checked = config
    for check in (_type_problems, _range_problems, _shape_problems, _combination_problems):
        found = [(names.split(), text) for names, text in check(checked)]
        found = [(names, text) for names, text in found if wrong.isdisjoint(names)]
        messages += [text for _, text in found]
        if check in (_type_problems, _range_problems):
            wrong |= {name for names, _ in found for name in names}
            checked = _with_defaults(config, wrong)
    return messages


def _with_defaults(config: TransformerConfig, names: set[str]) -> TransformerConfig:
    copy = object.__new__(type(config))
    for field in dataclasses.fields(config):
        value = field.default if field.name in names else getattr(config, field.name)
        object.__setattr__(copy, field.name, value)
    return copy


def _type_problems(config: TransformerConfig) -> Iterator[Problem]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        annotation = str(field.type)  # a string: annotations are postponed
        if value is None and annotation.endswith("| None"):
            continue
        if not _is_instance(value, annotation.removesuffix(" | None")):
            message = f"{field.name}={value!r} must be {annotation}, not {type(value).__name__}"
            yield field.name, message


def _is_instance(value: Any, kind: str) -> bool:
    if kind == "int | str":
        return _is_instance(value, "int") or _is_instance(value, "str")
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, dict if kind.startswith("dict") else str)


def _range_problems(config: TransformerConfig) -> Iterator[Problem]:
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name in CHOICES:
            if value not in CHOICES[name]:
                choices = ", ".join(CHOICES[name])
                yield name, f"{name}={value!r} is unknown; use one of {choices}"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            continue
        elif not math.isfinite(value):
            yield name, f"{name}={value} must be a finite number"
        elif name in _NOT_NEGATIVE:
            if value < 0:
                yield name, f"{name}={value} must not be negative"
        elif name in _FRACTIONS:
            if name == "dropout" and not 0 <= value < 1:
                yield name, f"dropout={value} must be at least 0 and below 1"
            if name == "rotary_fraction" and not 0 < value <= 1:
                yield name, f"rotary_fraction={value} must be above 0 and at most 1"
        elif value <= 0:
            yield name, f"{name}={value} must be positive"


def _shape_problems(config: TransformerConfig) -> Iterator[Problem]:
    dim, heads, groups = config.dim, config.n_heads, config.n_kv_heads or config.n_heads
    if config.head_dim is None and dim % heads:
        nearest = -(-dim // heads) * heads
        yield (
            "dim n_heads head_dim",
            f"dim={dim} is not a multiple of n_heads={heads}; use dim={nearest} or set head_dim",
        )
    if heads % groups:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        yield (
            "n_heads n_kv_heads",
            f"n_heads={heads} is not a multiple of n_kv_heads={groups}; use one of {divisors}",
        )
    head_dim = config.head_dim or dim // heads
    rotated = int(head_dim * config.rotary_fraction)
    if config.positions == "rope" and (rotated % 2 or rotated == 0):
        yield (
            "positions head_dim dim n_heads rotary_fraction",
            f"RoPE rotates pairs, but head_dim={head_dim} times "
            f"rotary_fraction={config.rotary_fraction} leaves {rotated} component(s); "
            "choose them so that the product is even and not 0",
        )
    if config.positions == "sinusoidal" and dim % 2:
        yield (
            "positions dim",
            f"dim={dim} must be even with positions='sinusoidal'; use {dim + 1}",
        )


def _combination_problems(config: TransformerConfig) -> Iterator[Problem]:
    if config.positions != "rope":
        for name in ("rope_scaling", "rotary_fraction", "rotary_pattern", "sliding_rope_theta"):
            value = getattr(config, name)
            if value != getattr(type(config), name):
                yield (
                    f"positions {name}",
                    f"{name}={value!r} has no effect with positions={config.positions!r}; "
                    "remove it or use positions='rope'",
                )
    else:
        yield from _rope_problems(config)
    if config.norm_placement != "pre" and config.parallel_residual:
        yield (
            "norm_placement parallel_residual",
            f"norm_placement={config.norm_placement!r} is not available with "
            "parallel_residual=True; use norm_placement='pre'",
        )
    if config.shared_norm and not config.parallel_residual:
        yield (
            "shared_norm parallel_residual",
            "shared_norm=True needs parallel_residual=True; set both or neither",
        )
    yield from _window_problems(config)
    yield from _score_problems(config)
    yield from _expert_problems(config)


def _rope_problems(config: TransformerConfig) -> Iterator[Problem]:
    if config.rope_scaling is not None:
        for message in rope_scaling_problems(config.rope_scaling):
            yield "rope_scaling", message
    if config.sliding_rope_theta is not None and config.sliding_window is None:
        yield (
            "sliding_rope_theta sliding_window",
            f"sliding_rope_theta={config.sliding_rope_theta} needs sliding_window; set both or "
            "neither",
        )
    pattern = config.rotary_pattern
    if isinstance(pattern, str) and (not pattern or set(pattern) - set("RN")):
        yield (
            "rotary_pattern",
            f"rotary_pattern={pattern!r} must be a number or letters R (rotated) and N (not), "
            "such as 'RRRN'",
        )
    elif pattern == 1 or (isinstance(pattern, str) and "R" not in pattern):
        yield (
            "rotary_pattern",
            f"rotary_pattern={pattern!r} leaves no layer rotated; use positions='none', or 2 or "
            "more or a pattern with an R",
        )


def _score_problems(config: TransformerConfig) -> Iterator[Problem]:
    score = config.attention_score
    for name in ("attention_scale", "attention_softcap"):
        value = getattr(config, name)
        if value is not None and score != "dot":
            yield (
                f"{name} attention_score",
                f"{name}={value} is not available with attention_score={score!r}; remove it or "
                "use attention_score='dot'",
            )
    if config.qk_norm and score == "cosine":
        yield (
            "qk_norm attention_score",
            "qk_norm=True repeats what attention_score='cosine' does; remove one of them",
        )
    if config.qk_norm_scope != "head" and not config.qk_norm:
        yield (
            "qk_norm_scope qk_norm",
            f"qk_norm_scope={config.qk_norm_scope!r} has no effect with qk_norm=False; set "
            "qk_norm=True or remove it",
        )


def _window_problems(config: TransformerConfig) -> Iterator[Problem]:
    pattern = config.sliding_window_pattern
    if isinstance(pattern, str) and (not pattern or set(pattern) - set("SL")):
        yield (
            "sliding_window_pattern",
            f"sliding_window_pattern={pattern!r} must be a number or letters S (window) and L "
            "(whole context), such as 'SSSL'",
        )
    elif pattern is not None and config.sliding_window is None:
        yield (
            "sliding_window_pattern sliding_window",
            f"sliding_window_pattern={pattern!r} needs sliding_window; set both or neither",
        )
    elif pattern == 1 or (isinstance(pattern, str) and "S" not in pattern):
        yield (
            "sliding_window_pattern",
            f"sliding_window_pattern={pattern!r} leaves no layer with a window; use 2 or more or a "
            "pattern with an S, or remove it together with sliding_window",
        )


def _expert_problems(config: TransformerConfig) -> Iterator[Problem]:
    if not config.n_experts:
        return
    if config.n_experts_per_token > config.n_experts:
        yield (
            "n_experts n_experts_per_token",
            f"n_experts_per_token={config.n_experts_per_token} exceeds "
            f"n_experts={config.n_experts}; use at most {config.n_experts}",
        )
    if config.mlp_bias:
        yield (
            "n_experts mlp_bias",
            f"mlp_bias=True is not available with n_experts={config.n_experts}; use False",
        )
