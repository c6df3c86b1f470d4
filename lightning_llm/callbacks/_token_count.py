"""Counting the tokens of training batches without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_llm.batches import IGNORE_INDEX, field
from lightning_llm.callbacks._flops import TokenFlops
from lightning_llm.callbacks._lazy_sum import LazySum


def tokens_of(batch: Any, outputs: Any = None) -> tuple[Tensor | int, int] | None:
    """The non-padding tokens of a batch and its sequence length; ``None`` if there are none.

    Padding is what ``attention_mask`` (B, T) hides, else what belongs to no document (negative
    ``document_ids``), else what has no label, else nothing. A step that returned ``num_tokens``
    has counted the ``shift_labels`` already.
    """
    input_ids = field(batch, "input_ids")
    shift_labels = field(batch, "shift_labels")
    labels = shift_labels if isinstance(shift_labels, Tensor) else field(batch, "labels")
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
        counted = field(outputs, "num_tokens") if labels is shift_labels else None
        if isinstance(counted, Tensor) and counted.ndim == 0 and not counted.is_floating_point():
            return counted, seq_len
        return (labels != IGNORE_INDEX).sum(), seq_len
    return shaped.numel(), seq_len


class TokenCount:
    """Tokens seen by this rank since the last ``clear``, by sequence length, on the device."""

    def __init__(self) -> None:
        self._counted: dict[int, LazySum] = {}
        self._known: dict[int, int] = {}  # batches without padding

    def add(self, batch: Any, outputs: Any = None) -> None:
        """Count a batch; launches at most two small kernels and waits for none."""
        found = tokens_of(batch, outputs)
        if found is None:
            return
        tokens, seq_len = found
        if isinstance(tokens, int):
            self._known[seq_len] = self._known.get(seq_len, 0) + tokens
        else:
            self._counted.setdefault(seq_len, LazySum()).add(tokens)

    def clear(self) -> None:
        """Forget what was counted."""
        self._counted, self._known = {}, {}

    def work(self, flops: TokenFlops | None) -> Tensor:
        """``(3,)``, mostly float64: tokens, their FLOPs and their causal FLOPs; 0 if not known."""
        counts = [(n, torch.tensor(count, dtype=torch.float64)) for n, count in self._known.items()]
        for seq_len, counted in self._counted.items():
            total = counted.total()
            assert total is not None
            counts.append((seq_len, total))
        rows = []
        for seq_len, count in counts:
            full, causal = (0.0, None) if flops is None else flops.at(seq_len)
            rows.append(torch.stack((count, count * full, count * (causal or 0.0))))
        if not rows:
            return torch.zeros(3, dtype=torch.float64)
        # Several rows are rare, on several devices rarer still.
        return sum((row.to(rows[-1].device) for row in rows[:-1]), rows[-1])
