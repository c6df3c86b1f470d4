"""Which positions of a batch are padding: computed, and never learned from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_llm.batches import IGNORE_INDEX, field


def padding_mask(batch: Any) -> Tensor | None:
    """Return which positions are padding, ``(B, T) bool``; ``None`` for a batch of another kind.

    Padding is what ``attention_mask`` hides or what belongs to no document (negative
    ``document_ids``). In a batch with neither it is the end of a row where one token repeats and
    no position has a target: a prompt has no targets either, and is no padding.
    """
    input_ids = field(batch, "input_ids")
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        return None
    mask = field(batch, "attention_mask")
    if isinstance(mask, Tensor) and mask.shape == input_ids.shape:
        return mask == 0
    documents = field(batch, "document_ids")
    if isinstance(documents, Tensor) and documents.shape == input_ids.shape:
        return documents < 0
    targets = field(batch, "shift_labels")
    targets = targets if isinstance(targets, Tensor) else field(batch, "labels")
    if not isinstance(targets, Tensor) or targets.shape != input_ids.shape:
        return torch.zeros_like(input_ids, dtype=torch.bool)
    idle = (targets == IGNORE_INDEX) & (input_ids == input_ids[:, -1:])
    # One position alone has no target in any row of plain text: nothing follows it.
    tail = idle.flip(1).long().cumprod(1).flip(1).bool()
    return tail & (tail.sum(1, keepdim=True) > 1)
