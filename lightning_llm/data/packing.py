"""How a token store becomes rows of ``seq_len`` tokens, each with its target.

Every class here is a map-style data set: row ``i`` is a pure function of the store and ``i``, and
``__getitems__`` builds a whole micro-batch at once. Index -1 stands for a row of padding, which
has no targets; loaders fill up last batches with it. Shapes: B rows, T = ``seq_len``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_llm.batches import IGNORE_INDEX
from lightning_llm.data.best_fit import best_fit
from lightning_llm.data.store import TokenStore
from lightning_llm.errors import InvalidValueError

Batch = dict[str, Tensor]
Packing = Literal["concat", "best_fit", "pad"]
PADDING_DOCUMENT = -1


class Rows(Protocol):
    """What a loader needs of a data set."""

    @property
    def fingerprint(self) -> dict[str, str | int | bool]:
        """Plain data that changes with the content of any row."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the rows as one batch; index -1 is a row of padding."""

    def documents(self, index: int) -> list[int]:
        """Return the numbers, in the store, of the documents that a row has tokens of."""


class ConcatWindows:
    """Windows over the stream of all documents, one token apart from each other.

    Row ``i`` reads tokens ``[i T, i T + T)`` and predicts ``(i T, i T + T]``, so every token but
    the first of the stream is a target exactly once; the last row is padded.

    With ``mask_documents`` rows also carry ``document_ids`` (numbered within the row, -1 for
    padding) and ``position_ids`` (from 0 at each document's start and at the row's), and a
    document's first token is no target.

    Args:
        store: The tokens.
        seq_len: T.
        mask_documents: Keep documents apart.
        pad_id: Input id of padding.

    Raises:
        ValueError: ``seq_len`` is below 1.
    """

    def __init__(
        self, store: TokenStore, seq_len: int, *, mask_documents: bool = False, pad_id: int = 0
    ) -> None:
        _check_seq_len(seq_len)
        self.store, self.seq_len = store, seq_len
        self.mask_documents, self.pad_id = mask_documents, pad_id
        self._targets = max(0, store.num_tokens - 1)
        self._full = self._targets // seq_len
        # Row i of this view is tokens [i T, i T + T]; taking rows from it copies whole windows.
        stream = store.tokens(0, self._full * seq_len + 1) if self._full else None
        self._windows = (
            np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len]
            if stream is not None
            else np.empty((0, seq_len + 1), dtype=store.dtype)
        )

    def __reduce__(self) -> tuple[partial[ConcatWindows], tuple[TokenStore, int]]:
        # The view of all windows must not be pickled: it would copy the store many times over.
        options: dict[str, Any] = {"mask_documents": self.mask_documents, "pad_id": self.pad_id}
        return partial(ConcatWindows, **options), (self.store, self.seq_len)

    @property
    def fingerprint(self) -> dict[str, str | int | bool]:
        """Plain data that changes with the content of any row."""
        return {
            "store": self.store.fingerprint,
            "packing": "concat",
            "seq_len": self.seq_len,
            "mask_documents": self.mask_documents,
        }

    def __len__(self) -> int:
        return -(-self._targets // self.seq_len)

    @property
    def fill_fraction(self) -> float:
        """Share of the positions that hold a token of the corpus."""
        return self._targets / max(1, len(self) * self.seq_len)

    def __getitem__(self, index: int) -> Batch:
        return _single(self, index)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        whole = (rows >= 0) & (rows < self._full)
        if whole.all():
            windows, used = self._windows[rows], None
        else:
            windows, used = self._partial(rows, whole)
        batch = {
            "input_ids": windows[:, :-1].astype(np.int64),
            "shift_labels": windows[:, 1:].astype(np.int64),
        }
        if used is not None:
            # (B, T): positions whose target lies past the end of the stream
            batch["shift_labels"][np.arange(self.seq_len) >= used[:, None]] = IGNORE_INDEX
        if self.mask_documents:
            self._add_documents(batch, rows, used)
        return _tensors(batch)

    def documents(self, index: int) -> list[int]:
        """Return the numbers of the documents that a row has tokens of."""
        offsets, start = self.store.document_offsets, index * self.seq_len
        stop = min(start + self.seq_len + 1, self.store.num_tokens)
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, stop, side="left"))
        return [i for i in range(first, last) if offsets[i + 1] > offsets[i]]

    def _partial(
        self, rows: npt.NDArray[np.int64], whole: npt.NDArray[np.bool_]
    ) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
        """Gather rows of which some are short; returns the windows and each one's targets."""
        windows = np.full((len(rows), self.seq_len + 1), self.pad_id, dtype=self.store.dtype)
        windows[whole] = self._windows[rows[whole]]
        used = np.where(whole, self.seq_len, 0)
        start = self._full * self.seq_len
        tail = self.store.tokens(start, self.store.num_tokens)
        for place in np.flatnonzero(rows == self._full):
            # Its last token is a target only; as an input it would have none.
            windows[place, : len(tail)] = tail
            used[place] = max(0, len(tail) - 1)
        return windows, used

    def _add_documents(
        self,
        batch: dict[str, np.ndarray],
        rows: npt.NDArray[np.int64],
        used: npt.NDArray[np.int64] | None,
    ) -> None:
        offsets = self.store.document_offsets
        length = self.seq_len + 1
        starts = np.maximum(rows, 0) * self.seq_len
        # Borders strictly inside each window, found per row and scattered in one go.
        first = np.searchsorted(offsets, starts, side="right")
        last = np.searchsorted(offsets, starts + length, side="left")
        place, border = _ranges(first, last - first)
        begins = np.zeros((len(rows), length), dtype=bool)
        begins[place, offsets[border] - starts[place]] = True
        batch["shift_labels"][begins[:, 1:]] = IGNORE_INDEX
        begins = begins[:, :-1]
        columns = np.arange(self.seq_len)
        documents = np.cumsum(begins, axis=1, dtype=np.int64)
        positions = columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
        if used is not None:
            padding = columns >= used[:, None]
            documents[padding], positions[padding] = PADDING_DOCUMENT, 0
        batch["document_ids"], batch["position_ids"] = documents, positions


class PackedDocuments:
    """Whole documents side by side in rows, each predicted from its own tokens alone.

    A document of ``n`` tokens has ``n - 1`` targets (its first token is none). It is cut into
    pieces of at most T targets; a piece reads one token less than it covers and the next piece
    starts with the token this one ends with, so cutting loses no target. A document of fewer than
    two tokens has no target and is left out.

    Args:
        store: The tokens.
        seq_len: T.
        one_per_row: One piece in a row (``packing="pad"``) instead of as many as fit
            (``"best_fit"``). Rows of one piece need no ``document_ids``: attention is causal and
            padding comes last.
        pad_id: Input id of padding.

    Raises:
        ValueError: ``seq_len`` is below 1.
    """

    def __init__(
        self, store: TokenStore, seq_len: int, *, one_per_row: bool = False, pad_id: int = 0
    ) -> None:
        _check_seq_len(seq_len)
        self.store, self.seq_len = store, seq_len
        self.one_per_row, self.pad_id = one_per_row, pad_id
        # Piece p reads tokens [starts[p], starts[p] + lengths[p]); row r holds the pieces
        # [row_offsets[r], row_offsets[r + 1]).
        self.starts, self.lengths = self._pieces()
        if one_per_row:
            self.row_offsets = np.arange(len(self.starts) + 1)
            return
        order, self.row_offsets = self._arranged()
        self.starts, self.lengths = self.starts[order], self.lengths[order]

    def _pieces(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return the first token and the length of each piece."""
        return _cut(self.store.document_offsets, self.seq_len)

    def _arranged(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the pieces row by row, and where each row's pieces start in that order."""
        return best_fit(self.lengths, self.seq_len)

    def _labels(
        self, stream: np.ndarray, token: npt.NDArray[np.int64]
    ) -> np.ndarray | npt.NDArray[np.int64]:
        """Return the targets at places of the stream."""
        return stream[token]

    @property
    def fingerprint(self) -> dict[str, str | int | bool]:
        """Plain data that changes with the content of any row."""
        return {
            "store": self.store.fingerprint,
            "packing": "pad" if self.one_per_row else "best_fit",
            "seq_len": self.seq_len,
        }

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @cached_property
    def fill_fraction(self) -> float:
        """Share of the positions that hold a token of the corpus."""
        return int(self.lengths.sum(dtype=np.int64)) / max(1, len(self) * self.seq_len)

    def __getitem__(self, index: int) -> Batch:
        return _single(self, index)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        real = np.maximum(rows, 0)
        counts = np.where(rows >= 0, self.row_offsets[real + 1] - self.row_offsets[real], 0)
        place, pieces = _ranges(self.row_offsets[real], counts)
        lengths = self.lengths[pieces].astype(np.int64)
        # For each token of the batch: its piece, its place in the piece, its place in the row.
        piece_of, position = _ranges(np.zeros_like(lengths), lengths)
        row_of = place[piece_of]
        used = np.bincount(row_of, minlength=len(rows))
        column = np.arange(len(row_of)) - (np.cumsum(used) - used)[row_of]
        cell = row_of * self.seq_len + column
        token = self.starts[pieces][piece_of] + position
        stream = self.store.tokens(0, self.store.num_tokens)
        batch = {
            "input_ids": self._scatter(cell, stream[token], len(rows), self.pad_id),
            "shift_labels": self._scatter(
                cell, self._labels(stream, token + 1), len(rows), IGNORE_INDEX
            ),
        }
        if not self.one_per_row:
            ordinal = np.arange(len(pieces)) - (np.cumsum(counts) - counts)[place]
            batch["document_ids"] = self._scatter(
                cell, ordinal[piece_of], len(rows), PADDING_DOCUMENT
            )
            batch["position_ids"] = self._scatter(cell, position, len(rows), 0)
        return _tensors(batch)

    def documents(self, index: int) -> list[int]:
        """Return the numbers of the documents that a row has tokens of."""
        starts = self.starts[self.row_offsets[index] : self.row_offsets[index + 1]]
        found = np.searchsorted(self.store.document_offsets, starts, side="right") - 1
        return sorted(set(found.tolist()))

    def _scatter(
        self, cell: npt.NDArray[np.int64], values: np.ndarray, rows: int, fill: int
    ) -> npt.NDArray[np.int64]:
        grid = np.full(rows * self.seq_len, fill, dtype=np.int64)
        grid[cell] = values
        return grid.reshape(rows, self.seq_len)


def pack(
    store: TokenStore, packing: Packing, seq_len: int, *, mask_documents: bool, pad_id: int
) -> ConcatWindows | PackedDocuments:
    """Return the rows of a store that a datamodule's ``packing`` stands for."""
    if packing == "concat":
        return ConcatWindows(store, seq_len, mask_documents=mask_documents, pad_id=pad_id)
    return PackedDocuments(store, seq_len, one_per_row=packing == "pad", pad_id=pad_id)


def _check_seq_len(seq_len: int) -> None:
    if seq_len < 1:
        raise InvalidValueError(f"seq_len={seq_len} must be at least 1.")


def _single(rows: ConcatWindows | PackedDocuments, index: int) -> Batch:
    if not -len(rows) <= index < len(rows):
        raise IndexError(f"row {index} of {len(rows)}")
    batch = rows.__getitems__([index % len(rows)])
    return {name: tensor[0] for name, tensor in batch.items()}


def _tensors(batch: dict[str, np.ndarray]) -> Batch:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _ranges(
    first: npt.NDArray[np.integer], count: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Concatenate ``range(first[i], first[i] + count[i])``; returns each number's i, and it."""
    owner = np.repeat(np.arange(len(first)), count)
    before = np.cumsum(count) - count
    return owner, np.arange(len(owner)) + (first - before)[owner]


def _cut(
    offsets: npt.NDArray[np.int64], seq_len: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Cut documents into pieces of at most ``seq_len`` targets: first tokens and lengths."""
    targets = np.maximum(np.diff(offsets) - 1, 0)
    document, number = _ranges(np.zeros_like(targets), -(-targets // seq_len))
    starts = offsets[:-1][document] + number * seq_len
    lengths = np.minimum(targets[document] - number * seq_len, seq_len)
    return starts, lengths.astype(np.int32)
