"""Token ids as a Hugging Face dataset, and back: for trainers and tools that read those."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_llm.data.store import TokenStore
from lightning_llm.data.store_writer import TokenStoreWriter
from lightning_llm.data.tokenizer import tokenizer_fingerprint, vocabulary_size
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerFast

_ROWS = 1000


def store_to_dataset(
    store: TokenStore, *, seq_len: int | None = None, column: str = "input_ids"
) -> Dataset:
    """Return a store as a dataset with one column of ids, without a copy of them.

    The dataset reads the store's memory map: ``save_to_disk`` or ``to_parquet`` make it independent
    of it.

    Args:
        store: The ids.
        seq_len: Rows are the windows of so many ids one after another, across documents, and the
            incomplete last one is left out; None makes every document a row.
        column: Its name.

    Raises:
        ValueError: ``seq_len`` is below 1, or longer than the store.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    ids = store.tokens(0, store.num_tokens)
    if seq_len is None:
        rows = _documents(pa.array(ids), store.document_offsets)
    else:
        if not 1 <= seq_len <= len(ids):
            raise InvalidValueError(
                f"seq_len={seq_len} must be at least 1, and at most the {len(ids):,} tokens of "
                f"{store.path}."
            )
        whole = len(ids) // seq_len * seq_len
        rows = pa.FixedSizeListArray.from_arrays(pa.array(ids[:whole]), seq_len)
    return Dataset(InMemoryTable(pa.table({column: rows})))


def _documents(ids: Any, offsets: np.ndarray) -> Any:
    import pyarrow as pa

    if offsets[-1] <= np.iinfo(np.int32).max:
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), ids)
    return pa.LargeListArray.from_arrays(pa.array(offsets), ids)


def dataset_to_store(
    dataset: Dataset | IterableDataset,
    path: str | Path,
    *,
    vocab_size: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    eos_id: int | None = None,
    column: str = "input_ids",
) -> TokenStore:
    """Write the ids of a dataset, one document a row, into a store, and open it.

    Args:
        dataset: Map-style or streaming; read once, in batches.
        path: The folder to write; it must not exist.
        vocab_size: Number of ids of the vocabulary; by default the tokenizer's.
        tokenizer: The tokenizer that made the ids; the store remembers which it was.
        eos_id: Ends each row that does not end with it; by default the tokenizer's. Without either
            rows are taken as they are.
        column: The column of the ids.

    Raises:
        ValueError: Neither ``vocab_size`` nor ``tokenizer`` is given, the column is not there or
            holds no lists of integers, or an id is not in the vocabulary; the row is named.
        FileExistsError: Something is at ``path``.
    """
    if tokenizer is not None:
        vocab_size = vocabulary_size(tokenizer) if vocab_size is None else vocab_size
        eos_id = tokenizer.eos_token_id if eos_id is None else eos_id
    if vocab_size is None:
        raise InvalidValueError(
            "dataset_to_store: give vocab_size, or the tokenizer that made the ids: a store "
            "records how many ids its vocabulary has."
        )
    made_by = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
    with TokenStoreWriter(path, vocab_size=vocab_size, tokenizer_fingerprint=made_by) as writer:
        for ids in _rows(dataset, column):
            writer.extend(ids)
            if eos_id is not None and (len(ids) == 0 or ids[-1] != eos_id):
                writer.extend([eos_id])
            writer.end_document()
    return TokenStore(path)


def _rows(dataset: Dataset | IterableDataset, column: str) -> Iterator[np.ndarray]:
    """Yield the ids of each row."""
    names = dataset.column_names
    if names is not None and column not in names:
        raise InvalidValueError(f"the dataset has no column {column!r}; it has {sorted(names)}.")
    done = 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=_ROWS):
        lists = table[column].combine_chunks()
        _check_lists(lists, column, done)
        ids = lists.flatten().to_numpy()
        ends = np.cumsum(lists.value_lengths().to_numpy())
        yield from np.split(ids, ends[:-1])
        done += len(lists)


def _check_lists(lists: Any, column: str, first_row: int) -> None:
    import pyarrow as pa

    kind = lists.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_list = is_list or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise InvalidValueError(
            f"column {column!r} of the dataset holds {kind}, not lists of integer ids. Text is "
            "encoded by TextDataModule(dataset=...)."
        )
    if lists.null_count or lists.flatten().null_count:
        raise InvalidValueError(
            f"column {column!r} of the dataset: a row from {first_row} to "
            f"{first_row + len(lists) - 1} is null, or holds a null among its ids."
        )
