"""Stores of given documents, in folders that go away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from lightning_llm.data import TokenStore, TokenStoreWriter

VOCAB_SIZE = 100_000


def documents_of(
    max_length: int = 12, max_documents: int = 12, ids: int = VOCAB_SIZE
) -> st.SearchStrategy[list[list[int]]]:
    """Lists of documents, empty ones and single tokens among them."""
    document = st.lists(st.integers(0, ids - 1), max_size=max_length)
    return st.lists(document, max_size=max_documents)


@contextmanager
def stored(
    documents: Sequence[Sequence[int]], vocab_size: int = VOCAB_SIZE
) -> Iterator[TokenStore]:
    """Write the documents, open them, and remove the files at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with TokenStoreWriter(path, vocab_size=vocab_size) as writer:
            for document in documents:
                writer.add(document)
        yield TokenStore(path)
