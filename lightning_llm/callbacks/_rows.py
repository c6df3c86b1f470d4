"""The first rows of a batch of any structure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def first_rows(batch: Any, size: int, kept: int) -> Any | None:
    """A new batch of the first ``kept`` of ``size`` rows; ``None`` if no part has ``size`` rows.

    Tensors and lists of ``size`` entries are cut, wherever they are nested; all else is passed on.
    """
    cut, found = _cut(batch, size, kept)
    return cut if found else None


def _cut(part: Any, size: int, kept: int) -> tuple[Any, bool]:
    if isinstance(part, Tensor):
        if part.ndim > 0 and part.shape[0] == size:
            return part[:kept], True
        return part, False
    if isinstance(part, Mapping):
        cuts = {key: _cut(value, size, kept) for key, value in part.items()}
        result: Any = copy.copy(part)  # keeps the type, and attributes beside the items
        for key, (value, _) in cuts.items():
            result[key] = value
        return result, any(found for _, found in cuts.values())
    if isinstance(part, (list, tuple)):
        parts = [_cut(value, size, kept) for value in part]
        if len(part) == size and not _holds_fields(part, parts):
            return part[:kept], True
        values = [value for value, _ in parts]
        rebuilt = type(part)(*values) if hasattr(part, "_fields") else type(part)(values)
        return rebuilt, any(found for _, found in parts)
    return part, False


def _holds_fields(part: list[Any] | tuple[Any, ...], parts: list[tuple[Any, bool]]) -> bool:
    """Whether a list as long as the batch holds one tensor per field, not one thing per sample."""
    is_per_sample = all(isinstance(value, Mapping) for value in part)
    return not is_per_sample and all(found for _, found in parts)
