"""Counting the tokens of training batches without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_llm.callbacks._batch import IGNORE_INDEX, field


def tokens_of(batch: Any) -> tuple[Tensor | int, int] | None:
    """The non-padding tokens of a batch and its sequence length; ``None`` if there are none.

    Padding is what ``attention_mask`` (B, T) hides, else what belongs to no document (negative
    ``document_ids``), else what has no label, else nothing.
    """
    input_ids = field(batch, "input_ids")
    labels = field(batch, "shift_labels")
    if not isinstance(labels, Tensor):
        labels = field(batch, "labels")
    shaped = input_ids if isinstance(input_ids, Tensor) else labels
    if not isinstance(shaped, Tensor) or shaped.ndim == 0:
        return None
    seq_len = shaped.shape[-1]
    mask = field(batch, "attention_mask")
    if isinstance(mask, Tensor) and mask.shape == shaped.shape:
        return (mask != 0).sum(), seq_len
    documents = field(batch, "document_ids")
    if isinstance(documents, Tensor) and documents.shape == shaped.shape:
        return (documents >= 0).sum(), seq_len
    if isinstance(labels, Tensor) and labels.shape == shaped.shape:
        return (labels != IGNORE_INDEX).sum(), seq_len
    return shaped.numel(), seq_len


class TokenCount:
    """Tokens seen by this rank since the last ``drain``, by sequence length, on the device."""

    def __init__(self) -> None:
        self._counts: dict[int, Tensor | int] = {}

    def add(self, batch: Any) -> None:
        """Count a batch; launches at most three small kernels and waits for none."""
        found = tokens_of(batch)
        if found is not None:
            tokens, seq_len = found
            self._counts[seq_len] = self._counts.get(seq_len, 0) + tokens

    def clear(self) -> None:
        """Forget what was counted."""
        self._counts = {}

    def drain(self) -> dict[int, int]:
        """Tokens by sequence length, and start anew. Waits for the device, once."""
        on_device = {k: v for k, v in self._counts.items() if isinstance(v, Tensor)}
        result = {k: v for k, v in self._counts.items() if isinstance(v, int)}
        if on_device:
            values = torch.stack([v.to(torch.int64) for v in on_device.values()]).tolist()
            result.update(zip(on_device, values))
        self.clear()
        return result
