"""Counting the tokens of training batches without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_llm.batches import IGNORE_INDEX, field
from lightning_llm.callbacks._flops import TokenFlops
from lightning_llm.callbacks._lazy_sum import LazySum

Counted = tuple[Tensor | int, int]


def tokens_of(batch: Any, outputs: Any = None) -> list[Counted]:
    """The non-padding tokens of a batch, each count with its sequence length.

    A batch (mapping or object) with ``input_ids``, ``shift_labels`` or ``labels`` of shape (B, T)
    is counted by these. Padding is what ``attention_mask`` (B, T) hides, else what belongs to no
    document (negative ``document_ids``), else what has no label, else nothing. A step that
    returned ``num_tokens`` has counted the ``shift_labels`` already.

    In any other batch the first integer tensor of two dimensions is taken for token ids (B, T),
    T > 1: of ``(x, y)``, that is ``x``. Batches within a batch, such as those of several
    dataloaders, are counted each. The list is empty where nothing of this kind is found.
    """
    named = _named_tokens(batch, outputs)
    if named is not None:
        return [named]
    if _is_ids(batch):
        return [(batch.numel(), batch.shape[-1])]
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        parts = list(batch)
    else:
        return []
    for part in parts:
        if _is_ids(part) and part.shape[-1] > 1:  # one a row is a length or a class
            return [(part.numel(), part.shape[-1])]
    inner = [part for part in parts if isinstance(part, (Mapping, list, tuple))]
    return [found for part in inner for found in tokens_of(part)]


def _named_tokens(batch: Any, outputs: Any) -> Counted | None:
    input_ids = field(batch, "input_ids")
    shift_labels = field(batch, "shift_labels")
    labels = shift_labels if isinstance(shift_labels, Tensor) else field(batch, "labels")
    shaped = input_ids if isinstance(input_ids, Tensor) else labels
    if not isinstance(shaped, Tensor) or shaped.ndim == 0:
        return None
    if shaped is not input_ids and not _is_ids(shaped):
        return None  # the classes of images, say
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


def _is_ids(part: Any) -> bool:
    """Whether something may be token ids (B, T)."""
    if not isinstance(part, Tensor) or part.ndim != 2:
        return False
    return part.dtype in (torch.int32, torch.int64)


class TokenCount:
    """Tokens seen by this rank since the last ``clear``, by sequence length, on the device."""

    def __init__(self) -> None:
        self._counted: dict[int, LazySum] = {}
        self._known: dict[int, int] = {}  # batches without padding

    def add(self, batch: Any, outputs: Any = None) -> None:
        """Count a batch; launches at most two small kernels and waits for none."""
        for tokens, seq_len in tokens_of(batch, outputs):
            if isinstance(tokens, int):
                self._known[seq_len] = self._known.get(seq_len, 0) + tokens
            else:
                self._counted.setdefault(seq_len, LazySum()).add(tokens)

    @property
    def is_empty(self) -> bool:
        """Whether no batch had anything to count."""
        return not self._counted and not self._known

    def extend(self, other: TokenCount) -> None:
        """Add all that ``other`` has counted."""
        for seq_len, counted in other._counted.items():
            self._counted.setdefault(seq_len, LazySum()).extend(counted)
        for seq_len, known in other._known.items():
            self._known[seq_len] = self._known.get(seq_len, 0) + known

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
