"""Documents to token stores, with reading, encoding and writing side by side."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lightning_llm.data.corpus import Labelled, Part
from lightning_llm.data.safe_cuts import Cuts, safe_cuts
from lightning_llm.data.special_frame import document_end, special_frame
from lightning_llm.data.store_writer import TokenStoreWriter
from lightning_llm.data.text_encoder import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH_CHARACTERS_PER_CORE = 1 << 19
# Tokenizers work on one text per core, and faster on texts that fit a core's cache.
_CHUNK_CHARACTERS = 1 << 14

# A piece of text, or an id that stands by itself, and the part it belongs to; None marks the end of
# a document.
_Item = tuple[Part, str | int | None]
Arrange = Callable[[Iterable[str]], Iterable[str | int]]
"""From the pieces of a document to what is encoded instead: the pieces as they are, or an id and
what follows it, texts to be encoded each by itself and ids."""


def encode_documents(
    documents: Labelled,
    tokenizer: PreTrainedTokenizerFast,
    writers: Mapping[Part, TokenStoreWriter],
    arrange: Arrange | None = None,
) -> None:
    """Encode documents and add them to the writer of their part.

    The ids of a document are those that the tokenizer gives when it is called with the whole text,
    special tokens in front and behind included, and the end-of-text id, once. Long documents are
    encoded in parts where that is proved to give the same ids (see `safe_cuts`), else as a whole.

    The tokenizer uses all cores; meanwhile this thread reads the next batch and writes the last
    one. At most three batches of text and ids are in memory. Progress goes to standard error if
    that is a terminal.

    Args:
        documents: Read once.
        tokenizer: Has an end-of-text token.
        writers: One for each part that occurs.
        arrange: Applied to training documents.
    """
    leading, trailing = special_frame(tokenizer)
    end = np.array(document_end(tokenizer, trailing), np.int32)

    def write(batch: list[_Item], encoded: Future[list[np.ndarray]]) -> None:
        for part, (ids, ends) in _by_part(batch, encoded.result(), end).items():
            writers[part].extend_all(ids, ends)

    progress = tqdm(
        desc="encoding", unit="char", unit_scale=True, file=sys.stderr, disable=None, leave=False
    )
    with progress, TextEncoder(tokenizer) as encode, ThreadPoolExecutor(max_workers=1) as pool:
        previous: tuple[list[_Item], Future[list[np.ndarray]]] | None = None
        cuts = safe_cuts(tokenizer)
        for batch in _batches(documents, cuts, leading, arrange):
            texts = [text for _, text in batch if isinstance(text, str)]
            encoded = pool.submit(encode, texts)
            if previous is not None:
                write(*previous)
            previous = batch, encoded
            progress.update(sum(map(len, texts)))
        if previous is not None:
            write(*previous)


def _by_part(
    batch: list[_Item], encoded: list[np.ndarray], end: np.ndarray
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
        elif text is None:
            piece = end
        else:
            if text not in alone:
                alone[text] = np.array([text], dtype=np.int32)
            piece = alone[text]
        pieces.setdefault(part, []).append(piece)
        size = sizes[part] = sizes.get(part, 0) + len(piece)
        if text is None:
            ends.setdefault(part, []).append(size)
    return {part: (np.concatenate(found), ends.get(part, [])) for part, found in pieces.items()}


def _batches(
    documents: Labelled, cuts: Cuts, leading: Sequence[int] = (), arrange: Arrange | None = None
) -> Iterator[list[_Item]]:
    limit = _BATCH_CHARACTERS_PER_CORE * min(16, os.cpu_count() or 1)
    batch: list[_Item] = []
    size = 0
    for part, document in documents:
        batch += [(part, token) for token in leading]
        pieces: Iterable[str | int] = document.pieces
        if arrange is not None and part == "train":
            pieces = arrange(document.pieces)
        for chunk in _chunks(pieces, cuts):
            batch.append((part, chunk))
            if isinstance(chunk, int):
                continue
            size += len(chunk)
            if size >= limit:
                yield batch
                batch, size = [], 0
        batch.append((part, None))
        # Markers cost memory too: a million empty documents must not gather in one batch.
        size += 64
    if batch:
        yield batch


def _chunks(pieces: Iterable[str | int], cuts: Cuts) -> Iterator[str | int]:
    """The parts that a document is encoded in: pieces are parts of one text, see `Arrange`."""
    items = iter(pieces)
    first = next(items, "")
    if isinstance(first, str):
        texts: Any = itertools.chain([first], items)
        yield from cuts.chunks(texts, _CHUNK_CHARACTERS)
        return
    yield first
    for item in items:
        yield from [item] if isinstance(item, int) else cuts.chunks([item], _CHUNK_CHARACTERS)
