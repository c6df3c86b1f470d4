"""Ids of a token store that the vocabulary does not have: found before training, not by a crash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lightning_llm.data.cache import remembered_fingerprint
from lightning_llm.data.store import TokenStore
from lightning_llm.errors import InvalidValueError

_CHUNK = 1 << 24


def in_chunks(store: TokenStore) -> Iterator[tuple[int, np.ndarray]]:
    """Yield all ids in order, a bounded number at a time, each time with the place of the first."""
    for start in range(0, store.num_tokens, _CHUNK):
        yield start, store.tokens(start, min(start + _CHUNK, store.num_tokens))


def check_ids(store: TokenStore, vocab_size: int, cache: Path | None = None) -> None:
    """Read the whole store and refuse one with ids outside of the vocabulary.

    Args:
        store: Any store.
        vocab_size: Number of ids of the vocabulary.
        cache: Where to keep the lowest and the highest id of a file, so that it is read once as
            long as it does not change; None reads it now.

    Raises:
        ValueError: There is one; its place is named.
    """
    if store.num_tokens == 0:
        return

    def measure() -> str:
        extremes = [(int(ids.min()), int(ids.max())) for _, ids in in_chunks(store)]
        return f"{min(low for low, _ in extremes)} {max(high for _, high in extremes)}"

    if cache is None:
        measured = measure()
    else:
        memory = cache / "ids" / store.dtype.name
        measured = remembered_fingerprint([store.bin_path], memory, measure)
    low, high = map(int, measured.split())
    if low >= 0 and high < vocab_size:
        return
    for start, ids in in_chunks(store):
        wrong = np.flatnonzero((ids >= vocab_size) | (ids < 0))
        if len(wrong):
            raise InvalidValueError(
                f"{store.bin_path}: id {int(ids[wrong[0]])} at position {start + int(wrong[0]):,} "
                f"is not in 0..{vocab_size - 1}. The ids are of a tokenizer with a larger "
                f"vocabulary, or not of {store.dtype.name}: give the vocab_size or tokenizer that "
                "they were made with, or for a file of bare ids their dtype."
            )
