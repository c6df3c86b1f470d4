"""Documents to token stores, with reading, encoding and writing side by side."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from lightning_llm.data.corpus import Labelled, Part
from lightning_llm.data.store_writer import TokenStoreWriter
from lightning_llm.data.text_encoder import TextEncoder
from lightning_llm.data.tokenizer_encoding import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH_CHARACTERS_PER_CORE = 1 << 19
# Tokenizers work on one text per core, and faster on texts that fit a core's cache.
_CHUNK_CHARACTERS = 1 << 14
# Between two lines without space around: blank lines and indentation are tokens of their own.
_LINE_END = re.compile(r"(?<=\S)\r?\n(?=\S)")
_PROBE = "A line.\nand 1\n\nB\n\n\n  if x:\nelse\n\ty \n“Ja”\n字\n1)\r\nz\r\n\r\n.\n.\n\nend\n"

# A piece of text, or an id that stands by itself, and the part it belongs to; None marks the end of
# a document.
_Item = tuple[Part, str | int | None]
Arrange = Callable[[Iterable[str]], Iterable[str | int]]


def encode_documents(
    documents: Labelled,
    tokenizer: PreTrainedTokenizerFast,
    writers: Mapping[Part, TokenStoreWriter],
    arrange: Arrange | None = None,
) -> None:
    """Encode documents and add them, each with the end-of-text id, to the writer of their part.

    The tokenizer uses all cores; meanwhile this thread reads the next batch and writes the last
    one. At most three batches of text and ids are in memory. Progress goes to standard error if
    that is a terminal.

    Args:
        documents: Read once.
        tokenizer: Has an end-of-text token.
        writers: One for each part that occurs.
        arrange: From the pieces of a training document to what is encoded instead: text, and ids
            of special tokens.
    """
    eos = tokenizer.eos_token_id

    def write(batch: list[_Item], encoded: Future[list[np.ndarray]]) -> None:
        for part, (ids, ends) in _by_part(batch, encoded.result(), eos).items():
            writers[part].extend_all(ids, ends)

    progress = tqdm(
        desc="encoding", unit="char", unit_scale=True, file=sys.stderr, disable=None, leave=False
    )
    with progress, TextEncoder(tokenizer) as encode, ThreadPoolExecutor(max_workers=1) as pool:
        previous: tuple[list[_Item], Future[list[np.ndarray]]] | None = None
        cut = _splits_at_lines(tokenizer)
        for batch in _batches(documents, cut, arrange):
            texts = [text for _, text in batch if isinstance(text, str)]
            encoded = pool.submit(encode, texts)
            if previous is not None:
                write(*previous)
            previous = batch, encoded
            progress.update(sum(map(len, texts)))
        if previous is not None:
            write(*previous)


def _by_part(
    batch: list[_Item], encoded: list[np.ndarray], eos: int
) -> dict[Part, tuple[np.ndarray, list[int]]]:
    """The ids of a batch for each part, and where its documents end in them."""
    arrays = iter(encoded)
    alone: dict[int, np.ndarray] = {}  # ids that stand by themselves
    pieces: dict[Part, list[np.ndarray]] = {}
    ends: dict[Part, list[int]] = {}
    sizes: dict[Part, int] = {}
    for part, text in batch:
        if isinstance(text, str):
            piece = next(arrays)
        else:
            single = eos if text is None else text
            if single not in alone:
                alone[single] = np.array([single], dtype=np.int32)
            piece = alone[single]
        pieces.setdefault(part, []).append(piece)
        size = sizes[part] = sizes.get(part, 0) + len(piece)
        if text is None:
            ends.setdefault(part, []).append(size)
    return {part: (np.concatenate(found), ends.get(part, [])) for part, found in pieces.items()}


def _splits_at_lines(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Tell whether a text may be encoded line by line without changing its ids.

    Not so with tokenizers that put a space before each text, or have tokens across line ends.
    """
    (whole,) = encode_texts(tokenizer, [_PROBE])
    lines = encode_texts(tokenizer, list(_chunks(_PROBE, 1)))
    return np.array_equal(whole, np.concatenate(lines))


def _chunks(text: str, size: int) -> Iterator[str]:
    """Cut a text at line ends into chunks of at least ``size`` characters."""
    start = 0
    while len(text) - start > size and (found := _LINE_END.search(text, start + size - 1)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:] if start else text


def _batches(
    documents: Labelled, cut: bool, arrange: Arrange | None = None
) -> Iterator[list[_Item]]:
    limit = _BATCH_CHARACTERS_PER_CORE * min(16, os.cpu_count() or 1)
    batch: list[_Item] = []
    size = 0
    for part, document in documents:
        pieces: Iterable[str | int] = document.pieces
        if arrange is not None and part == "train":
            pieces = arrange(document.pieces)
        for piece in pieces:
            if isinstance(piece, int):
                batch.append((part, piece))
                continue
            chunks = _chunks(piece, _CHUNK_CHARACTERS) if cut else [piece]
            batch += [(part, chunk) for chunk in chunks]
            size += len(piece)
            if size >= limit:
                yield batch
                batch, size = [], 0
        batch.append((part, None))
        # Markers cost memory too: a million empty documents must not gather in one batch.
        size += 64
    if batch:
        yield batch
