"""Several token stores as one, such as the shards of a corpus: nothing is merged on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_llm.data.cache import content_hash
from lightning_llm.data.packing import Batch, ConcatWindows, PackedDocuments
from lightning_llm.data.store import TokenStore


class SeveralStores(TokenStore):
    """Stores one behind the other, addressed as a single one.

    No document goes on in the next store.

    Args:
        stores: At least one.
    """

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        self.stores = tuple(stores)
        self.path, self.bin_path = stores[0].path, stores[0].bin_path
        self.meta: dict[str, Any] = {}
        self.dtype = np.result_type(*(store.dtype for store in stores))
        self._starts = np.cumsum([0, *(store.num_tokens for store in stores)], dtype=np.int64)
        self.num_tokens = int(self._starts[-1])

    def __len__(self) -> int:
        return len(self.document_offsets) - 1

    def __getitem__(self, document: int) -> np.ndarray:
        """Return the ids of one document."""
        if not -len(self) <= document < len(self):
            raise IndexError(f"document {document} of {len(self)} in {self!r}")
        start, stop = self.document_offsets[document % len(self) :][:2]
        return self.tokens(int(start), int(stop))

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return ids ``start:stop`` of the whole stream; across stores they are copied.

        Raises:
            IndexError: The range does not lie inside the stream.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.num_tokens} in {self!r}")
        pieces = []
        for store, first in zip(self.stores, self._starts[:-1].tolist()):
            low, high = max(start - first, 0), min(stop - first, store.num_tokens)
            if low < high:
                pieces.append(store.tokens(low, high))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=self.dtype)

    @cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """Where each document starts in the stream and the last one ends: int64 (len + 1,)."""
        offsets = [
            store.document_offsets[:-1] + start for store, start in zip(self.stores, self._starts)
        ]
        return np.concatenate([*offsets, self._starts[-1:]])

    @property
    def vocab_size(self) -> int | None:
        """The largest vocabulary of the stores; None where one of them does not say."""
        sizes = [store.vocab_size for store in self.stores]
        known = [size for size in sizes if size is not None]
        return max(known) if len(known) == len(sizes) else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the stores' fingerprints, in order."""
        return content_hash([store.fingerprint for store in self.stores])

    def verify(self) -> None:
        """Verify each store.

        Raises:
            ValueError: One is damaged; it is named.
        """
        for store in self.stores:
            store.verify()

    def __reduce__(self) -> tuple[type[SeveralStores], tuple[tuple[TokenStore, ...]]]:  # type: ignore[override]
        return type(self), (self.stores,)

    def __repr__(self) -> str:
        return f"SeveralStores({list(self.stores)!r})"


class SeveralRows:
    """The rows of several stores one behind the other, each packed alone.

    Args:
        parts: Rows of each store, all of one length and kind.
    """

    def __init__(self, parts: Sequence[ConcatWindows | PackedDocuments]) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)

    @property
    def fingerprint(self) -> dict[str, str | int | bool]:
        """Plain data that changes with the content of any row."""
        return {"rows": content_hash([dict(part.fingerprint) for part in self.parts])}

    @property
    def fill_fraction(self) -> float:
        """Share of the positions that hold a token of the corpus."""
        filled = sum(len(part) * part.fill_fraction for part in self.parts)
        return filled / max(1, len(self))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        batch = self.__getitems__([index % len(self)])
        return {name: tensor[0] for name, tensor in batch.items()}

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the rows as one batch; index -1 is a row of padding."""
        rows = np.asarray(indices, dtype=np.int64)
        owner = np.maximum(np.searchsorted(self._starts, rows, side="right") - 1, 0)
        batch: Batch = {}
        for number in np.unique(owner):
            places = np.flatnonzero(owner == number)
            local = np.where(rows[places] < 0, -1, rows[places] - self._starts[number])
            part = self.parts[number].__getitems__(local)
            if len(places) == len(rows):
                return part
            for name, tensor in part.items():
                whole = batch.setdefault(name, tensor.new_empty((len(rows), *tensor.shape[1:])))
                whole[torch.from_numpy(places)] = tensor
        return batch

    def documents(self, index: int) -> list[int]:
        """Return the numbers of the documents of a row, counted over all stores."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        before = sum(len(part.store) for part in self.parts[:number])
        local = index - int(self._starts[number])
        return [before + document for document in self.parts[number].documents(local)]
