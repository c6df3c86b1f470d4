"""Layers that differ, as lists with one entry a layer (theirs) and as patterns (ours)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_llm.errors import InvalidValueError
from lightning_llm.interop.hf.family import WAY_OUT
from lightning_llm.models import TransformerConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"


def windows_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Which layers have a sliding window, as ``layer_types``."""
    windows = [config.layer_window(layer) for layer in range(config.n_layers)]
    return {
        "sliding_window": config.sliding_window,
        "layer_types": [_FULL if window is None else _SLIDING for window in windows],
    }


def layered_windows_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The same for architectures that build the mask of a window even if no layer has one."""
    window = config.sliding_window or config.max_seq_len
    return {**windows_to_hf(config), "sliding_window": window}


def windows_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`windows_to_hf`; no window is left if no layer has one.

    Raises:
        ValueError: A kind of layer we do not have.
    """
    kinds = hf["layer_types"]
    unknown = sorted(set(kinds) - {_FULL, _SLIDING})
    if unknown:
        raise InvalidValueError(
            f"config.json: layer_types of model_type={hf.get('model_type')!r} has "
            f"{', '.join(unknown)} without counterpart here; supported: {_FULL}, {_SLIDING}. "
            f"{WAY_OUT}"
        )
    if hf["sliding_window"] is None or _SLIDING not in kinds:
        return {"sliding_window": None}
    pattern = shortest_pattern("S" if kind == _SLIDING else "L" for kind in kinds)
    if pattern == "S":
        pattern = None
    return {"sliding_window": hf["sliding_window"], "sliding_window_pattern": pattern}


def rotations_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Which layers have rotary positions, as SmolLM3's ``no_rope_layers`` (1: the layer has)."""
    rotations = [config.layer_rotation(layer) for layer in range(config.n_layers)]
    return {"no_rope_layers": [int(rotation is not None) for rotation in rotations]}


def rotations_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`rotations_to_hf`."""
    rotated = hf["no_rope_layers"][: hf["num_hidden_layers"]]
    pattern = shortest_pattern("R" if flag else "N" for flag in rotated)
    return {"rotary_pattern": None if pattern == "R" else pattern}


def shortest_pattern(letters: Iterable[str]) -> int | str | None:
    """Shortest string that gives the letters when repeated; n for n-1 equal ones and another."""
    whole = "".join(letters)
    if not whole:
        return None
    periods = (whole[:length] for length in range(1, len(whole) + 1))
    unit = next(unit for unit in periods if (unit * len(whole))[: len(whole)] == whole)
    is_every_nth = unit[-1] in "LN" and set(unit[:-1]) <= {"S", "R"}
    return len(unit) if len(unit) > 1 and is_every_nth else unit
