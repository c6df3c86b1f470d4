"""Batches of a corpus to ids on all cores, by the fastest way that gives the tokenizer's ids."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from lightning_llm.data.tiktoken_encoding import (
    HARD_TEXTS,
    Encode,
    UnsuitableError,
    tiktoken_encoder,
)
from lightning_llm.data.tokenizer_encoding import encode_texts, encodes_by_table

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)
# Shares of a batch for each thread: more of them even out what the texts cost.
_SHARES_PER_THREAD = 4


class TextEncoder:
    """Encode the texts of a corpus, batch by batch, as `encode_texts` does.

    The first batch goes through the tokenizer itself. Before the second one, tiktoken has to give
    the same ids for the first batch and for texts made of what is hard: every script, runs of
    space, names of special tokens. If it does, it encodes the rest, about four times as fast. A
    line of the log says which it is, and why.

    Args:
        tokenizer: What the ids mean.
        threads: For tiktoken; as many as there are cores if not given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, threads: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.threads)
        self._fast: Encode | None = None
        # Texts and their ids, until they have served as the proof.
        self._sample: tuple[Sequence[str], list[npt.NDArray[np.int32]]] | None = None
        self._decided = encodes_by_table(tokenizer)

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return one int32 array for each text.

        Raises:
            ValueError: See `encode_texts`.
        """
        if self._sample is not None:
            self._decide(*self._sample)
            self._sample = None
        if self._fast is not None:
            return self._by_tiktoken(self._fast, texts)
        ids = encode_texts(self.tokenizer, texts)
        if not self._decided:
            self._sample, self._decided = (texts, ids), True
        return ids

    def _decide(self, texts: Sequence[str], ids: list[npt.NDArray[np.int32]]) -> None:
        try:
            fast = tiktoken_encoder(self.tokenizer)
            expected = [*encode_texts(self.tokenizer, HARD_TEXTS), *ids]
            given = self._by_tiktoken(fast, [*HARD_TEXTS, *texts])
            if not all(map(np.array_equal, expected, given)):
                raise UnsuitableError("tiktoken gives other ids for a sample of the text")
        except UnsuitableError as reason:
            _LOG.info("encoding with the tokenizers library: %s", reason)
            return
        characters = sum(map(len, texts)) + sum(map(len, HARD_TEXTS))
        _LOG.info("encoding with tiktoken: same ids on a sample of %d characters", characters)
        self._fast = fast

    def _by_tiktoken(self, encode: Encode, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        return [ids for share in self._pool.map(encode, self._shares(texts)) for ids in share]

    def _shares(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """Cut a batch into runs of about as many characters each."""
        wanted = 1 + sum(map(len, texts)) // (self.threads * _SHARES_PER_THREAD)
        start = size = 0
        for stop, text in enumerate(texts, 1):
            size += len(text)
            if size >= wanted:
                yield texts[start:stop]
                start, size = stop, 0
        if start < len(texts):
            yield texts[start:]
