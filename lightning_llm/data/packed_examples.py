"""Rows of examples of which only the targets are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_llm.batches import IGNORE_INDEX
from lightning_llm.data.packing import PackedDocuments
from lightning_llm.data.store import TokenStore

TooLong = Literal["drop", "truncate"]


class StoredTexts(NamedTuple):
    """What generation is measured on, one entry per example.

    Attributes:
        prompts: What to continue.
        references: One text or several.
    """

    prompts: list[str]
    references: list[Any]


class PackedExamples(PackedDocuments):
    """Whole examples side by side in rows, each predicted from its own tokens alone.

    Labels are -100 everywhere but at targets. Examples are never cut in two: one that does not fit
    into a row is left out or loses its end, and one without a target in what is left of it is left
    out in any case.

    For evaluation, rows keep the order of the examples, and a batch has the ``prompts`` and
    ``references`` of the examples that begin in it: each once, however rows are shared out. There
    an example that is too long loses its end even with ``too_long="drop"``, so that texts are
    scored on all data; only where no target fits behind the prompt it is left out. A prompt that
    leaves no room in a row for what should follow, as that of a long conversation may, is not in
    the batch.

    Args:
        store: Token ids, one document per example.
        targets: The same documents, 1 where the id is a target and 0 elsewhere.
        seq_len: T.
        one_per_row: One example in a row instead of as many as fit.
        too_long: ``drop`` or ``truncate`` examples of more than ``seq_len + 1`` tokens.
        pad_id: Input id of padding.
        texts: Of the examples, for evaluation.
        limit: Take this many examples at most, the first.
    """

    def __init__(
        self,
        store: TokenStore,
        targets: TokenStore,
        seq_len: int,
        *,
        one_per_row: bool = False,
        too_long: TooLong = "drop",
        pad_id: int = 0,
        texts: StoredTexts | None = None,
        limit: int | None = None,
    ) -> None:
        self.targets, self.too_long, self.texts = targets, too_long, texts
        self.limit = limit
        self.dropped = self.truncated = self.unprompted = 0
        super().__init__(store, seq_len, one_per_row=one_per_row, pad_id=pad_id)

    @property
    def fingerprint(self) -> dict[str, str | int | bool]:
        """Plain data that changes with the content of any row, and with what is a target."""
        return {
            **super().fingerprint,
            "targets": self.targets.fingerprint,
            "too_long": self.too_long,
            "limit": -1 if self.limit is None else self.limit,
        }

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        batch: dict[str, Any] = super().__getitems__(indices)
        if self.texts is not None:
            examples = [
                int(self._kept[piece])
                for row in np.asarray(indices).tolist()
                if row >= 0
                for piece in range(self.row_offsets[row], self.row_offsets[row + 1])
                if self._has_room[piece]
            ]
            batch["prompts"] = [self.texts.prompts[i] for i in examples]
            batch["references"] = [self.texts.references[i] for i in examples]
        return batch

    def _pieces(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        offsets = self.store.document_offsets
        starts, inputs = offsets[:-1][: self.limit], np.diff(offsets)[: self.limit] - 1
        # The first token of an example has nothing before it, so it is no target.
        marked = np.flatnonzero(self.targets.tokens(0, self.targets.num_tokens))
        first = np.searchsorted(marked, starts + 1)
        found = np.append(marked, np.iinfo(np.int64).max)[first]
        has_target = found <= starts + np.minimum(inputs, self.seq_len)
        fits = inputs <= self.seq_len
        cuts = self.texts is not None or self.too_long == "truncate"
        keep = has_target & (fits | cuts)
        self._kept = np.flatnonzero(keep)
        if self.texts is not None:
            self._has_room = self._prompt_lengths(marked)[self._kept] < self.seq_len
            self.unprompted = int((~self._has_room).sum())
        self.dropped = len(starts) - len(self._kept)
        self.truncated = int((keep & ~fits).sum())
        lengths = np.minimum(inputs[keep], self.seq_len).astype(np.int32)
        return starts[keep], lengths

    def _prompt_lengths(self, marked: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many tokens come before the last run of targets of each example."""
        offsets = self.store.document_offsets
        begins = np.diff(marked, prepend=-2) > 1
        begins |= np.isin(marked, offsets)  # targets that follow those of the example before
        runs = marked[begins]
        last = np.searchsorted(runs, offsets[1:]) - 1
        starts = np.maximum(runs[last] if len(runs) else offsets[:-1], offsets[:-1])
        return starts - offsets[:-1]

    def _arranged(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if self.texts is None:
            return super()._arranged()
        return np.arange(len(self.lengths)), _in_order(self.lengths, self.seq_len)

    def _labels(
        self, stream: np.ndarray, token: npt.NDArray[np.int64]
    ) -> np.ndarray | npt.NDArray[np.int64]:
        is_target = self.targets.tokens(0, self.targets.num_tokens)[token] > 0
        return np.where(is_target, stream[token].astype(np.int64), IGNORE_INDEX)


def _in_order(lengths: npt.NDArray[np.int32], capacity: int) -> npt.NDArray[np.int64]:
    """Fill rows without changing the order: where each row's pieces start (rows + 1)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    offsets = [0]
    while offsets[-1] < len(lengths):
        before = int(ends[offsets[-1] - 1]) if offsets[-1] else 0
        offsets.append(int(np.searchsorted(ends, before + capacity, side="right")))
    return np.array(offsets, dtype=np.int64)
