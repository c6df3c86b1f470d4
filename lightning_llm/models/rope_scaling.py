"""Rotation frequencies of RoPE and their extensions to longer contexts.

RoPE: Su et al. 2021, arXiv:2104.09864. The extensions follow the definitions that Hugging Face
configs refer to by ``rope_type``, so that imported models behave the same.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL = {
    "yarn": (
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
# Every key of each kind besides ``rope_type``.
KEYS = {kind: (*keys, *_OPTIONAL.get(kind, ())) for kind, keys in _REQUIRED.items()}


def rope_scaling_problems(scaling: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with a ``rope_scaling`` mapping, with the remedy."""
    kind = scaling.get("rope_type")
    if kind not in _REQUIRED:
        yield f"rope_scaling['rope_type']={kind!r} is unknown; use one of {', '.join(_REQUIRED)}"
        return
    known = KEYS[kind]
    for key in _REQUIRED[kind]:
        if key not in scaling:
            yield f"rope_scaling of type {kind!r} lacks {key!r}; it takes {', '.join(known)}"
    for key, value in scaling.items():
        if key == "rope_type":
            continue
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
            yield f"rope_scaling of type {kind!r} has no key {key!r}; {hint}"
        elif key == "truncate":
            if not isinstance(value, bool):
                yield f"rope_scaling['truncate']={value!r} must be true or false"
        elif value is None and key not in _REQUIRED[kind]:
            continue
        elif not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            yield f"rope_scaling[{key!r}]={value!r} must be a positive number"
    low, high = scaling.get("low_freq_factor"), scaling.get("high_freq_factor")
    if isinstance(low, int | float) and isinstance(high, int | float) and low >= high:
        yield f"rope_scaling['low_freq_factor']={low} must be below high_freq_factor={high}"


def rope_frequencies(
    rotary_dim: int, theta: float, scaling: dict[str, Any] | None
) -> tuple[Tensor, float]:
    """Angles per position, and the factor on cosine and sine.

    Args:
        rotary_dim: Number of rotated components R of a head (even).
        theta: Base wavelength.
        scaling: A valid ``rope_scaling`` mapping or None.

    Returns:
        ``(frequencies, attention_factor)``: float32 on the CPU, shape (R / 2,), in radians per
        position; and the scalar that YaRN multiplies both rotated vectors with (else 1).
    """
    # Explicit dtype and device: the caller may run under a bf16 default or the meta device.
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim
    wavelengths = theta**exponents  # over 2 pi
    kind = "default" if scaling is None else scaling["rope_type"]
    if kind == "default":
        return 1.0 / wavelengths, 1.0
    assert scaling is not None
    if kind == "linear":
        return 1.0 / wavelengths / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3(1.0 / wavelengths, scaling), 1.0
    return _yarn(wavelengths, rotary_dim, theta, scaling), _yarn_attention_factor(scaling)


def _llama3(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1: slow components are interpolated, fast ones kept, a smooth step between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    turns = context * frequencies / (2 * math.pi)  # full turns within the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 0: interpolate, 1: keep
    return (1 - smooth) * frequencies / scaling["factor"] + smooth * frequencies


def _yarn(wavelengths: Tensor, rotary_dim: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): the step is linear in the component's index."""
    context = scaling["original_max_position_embeddings"]

    def index_with_turns(turns: float) -> float:
        return rotary_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = index_with_turns(scaling.get("beta_fast") or 32)
    last = index_with_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if first == last:
        last += 0.001  # a step instead of a ramp
    index = torch.arange(rotary_dim // 2, dtype=torch.float32, device="cpu")
    keep = 1 - ((index - first) / (last - first)).clamp(0, 1)
    return 1.0 / (scaling["factor"] * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def _yarn_attention_factor(scaling: dict[str, Any]) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def magnitude(scale: float) -> float:
        factor = scaling["factor"]
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    numerator, denominator = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if numerator and denominator:
        return magnitude(numerator) / magnitude(denominator)
    return magnitude(1.0)
