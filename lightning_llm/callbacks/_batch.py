"""Reading batches and step outputs of any LightningModule, without changing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100


def field(container: Any, name: str) -> Any:
    """``container[name]`` of a mapping, ``container.name`` of an object, or ``None``."""
    if type(container) is dict or isinstance(container, Mapping):  # the first is much faster
        return container.get(name)
    if isinstance(container, Tensor):
        return None
    return getattr(container, name, None)


def find_targets(batch: Any) -> Tensor | None:
    """The token each position has to predict, or ``None`` when the batch holds no labels.

    ``shift_labels`` (B, T) are used as they are; ``labels`` (B, T) are in the Hugging Face
    convention, aligned with ``input_ids``, so position t predicts ``labels[:, t + 1]`` and the
    result is (B, T - 1). Ignored targets are -100.
    """
    shift_labels = field(batch, "shift_labels")
    if isinstance(shift_labels, Tensor):
        return shift_labels
    labels = field(batch, "labels")
    if isinstance(labels, Tensor) and labels.ndim > 0:
        return labels[..., 1:]
    return None


def count_targets(targets: Tensor) -> Tensor:
    """How many targets are not ignored, as a 0-dim int64 tensor on the device of ``targets``."""
    return (targets != IGNORE_INDEX).sum()


def describe(value: Any) -> str:
    """What a step returned, for an error message: the keys of a mapping, else the type."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {sorted(map(str, value))}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without it (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_float64(values: Tensor) -> Tensor:
    """The sum of ``values`` in float64, where their device has that."""
    return values.sum(dtype=widest_dtype(values.device))
