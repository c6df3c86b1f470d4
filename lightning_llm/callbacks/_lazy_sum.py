"""Sums of scalars on the device that cost nothing until they are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

_HELD = 64  # scalars kept before they are added up


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without it (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_float64(values: Tensor) -> Tensor:
    """The sum of ``values`` in float64, where their device has that."""
    return values.sum(dtype=widest_dtype(values.device))


class LazySum:
    """Keeps scalars of one device and adds them up, in float64, by the dozen."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """Add a scalar, which nobody changes later. Launches nothing, but once in 64 calls."""
        self._parts.append(value)
        if len(self._parts) > _HELD:
            self._parts = [self._sum()]

    def total(self) -> Tensor | None:
        """The sum, 0-dim, in float64 (float32 where there is none); ``None`` for nothing."""
        return self._sum() if self._parts else None

    def extend(self, other: LazySum) -> None:
        """Add all that ``other`` holds; launches nothing, but once in 64 scalars."""
        self._parts += other._parts
        if len(self._parts) > _HELD:
            self._parts = [self._sum()]

    def clear(self) -> None:
        """Start anew."""
        self._parts = []

    def _sum(self) -> Tensor:
        parts = self._parts
        first = parts[0].dtype
        if any(part.dtype != first for part in parts):  # what was added up before, in float64
            return sum_float64(torch.stack([sum_float64(part) for part in parts]))
        return sum_float64(torch.stack(parts))
