"""Reading batches, and what steps return, of any LightningModule, without changing them.

Shapes: B batch, T sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_llm.errors import InvalidTypeError, MissingKeyError

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


def targets_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the target of each position, ``(B, T) int64`` with ``-100`` ignored.

    ``shift_labels`` is taken as it is; ``labels`` (Hugging Face convention, aligned with
    ``input_ids``) is shifted by one.

    Raises:
        KeyError: The batch has neither.
    """
    targets = find_targets(batch)
    if targets is None:
        raise MissingKeyError(
            f"the batch is {describe(batch)}; it needs 'shift_labels' (the target of each "
            f"position) or 'labels' (aligned with input_ids, as Hugging Face collators emit)"
        )
    if "shift_labels" in batch:
        return targets
    return torch.nn.functional.pad(targets, (0, 1), value=IGNORE_INDEX)


def inputs_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the token ids of a batch, ``(B, T)`` whole numbers.

    Raises:
        KeyError: The batch has no ``input_ids``; the keys that it has are named.
        TypeError: They are no tensor of that kind.
    """
    ids = field(batch, "input_ids")
    if ids is None:
        raise MissingKeyError(
            f"the batch is {describe(batch)}; it needs 'input_ids' (B, T), the ids of the tokens, "
            f"beside 'shift_labels' or 'labels' (B, T)"
        )
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        kind = f" of {ids.dtype}" if isinstance(ids, Tensor) else ""
        raise InvalidTypeError(
            f"input_ids of the batch is {describe(ids)}{kind}; it must be a tensor (B, T) of whole "
            f"numbers, the ids of the tokens"
        )
    return ids


def documents_of(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return which document each position belongs to, ``(B, T) int64``, None for one a row.

    The padding of an ``attention_mask`` becomes a document of its own. Padding on the right hides
    nothing that a causal model could see; where the mask lies on the host that is looked up, and
    attention keeps its fast path. (On a GPU, leave such masks out of the batch.)
    """
    documents, mask = batch.get("document_ids"), batch.get("attention_mask")
    if documents is not None or mask is None:
        return documents
    if mask.device.type == "cpu" and not bool((mask[:, 1:] > mask[:, :-1]).any()):
        return None
    return mask.long() - 1
