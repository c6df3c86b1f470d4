"""Stores as Hugging Face datasets, and datasets of ids as stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars, load_from_disk

from lightning_llm.data import TokenizerSpec, TokenStore, TokenStoreWriter
from lightning_llm.data.tokenizer import tokenizer_fingerprint, train_tokenizer
from lightning_llm.interop.hf import dataset_to_store, store_to_dataset

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6, 7, 8, 255, 0]]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    with TokenStoreWriter(tmp_path / "store", vocab_size=256) as writer:
        for document in DOCUMENTS:
            writer.add(document)
    return TokenStore(tmp_path / "store")


def test_documents_are_rows(store: TokenStore, tmp_path: Path) -> None:
    disable_progress_bars()
    dataset = store_to_dataset(store)
    assert dataset["input_ids"][:] == DOCUMENTS
    dataset.save_to_disk(tmp_path / "saved")
    assert load_from_disk(tmp_path / "saved")["input_ids"][:] == DOCUMENTS
    assert dataset.filter(lambda row: len(row["input_ids"]) > 1).num_rows == 2


def test_no_id_is_copied(store: TokenStore) -> None:
    ids = store.tokens(0, store.num_tokens)
    for options in ({}, {"seq_len": 4}):
        [chunk] = store_to_dataset(store, **options).data.column("input_ids").chunks
        assert chunk.values.buffers()[1].address == ids.ctypes.data


def test_windows_of_one_length(store: TokenStore) -> None:
    dataset = store_to_dataset(store, seq_len=4, column="ids")
    assert dataset["ids"][:] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert dataset.with_format("torch")[1]["ids"].tolist() == [5, 6, 7, 8]
    with pytest.raises(ValueError, match=r"seq_len=11 must be .* at most the 10 tokens"):
        store_to_dataset(store, seq_len=11)


def test_windows_train_a_model_of_transformers(store: TokenStore) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256, n_embd=8, n_layer=1, n_head=1, n_positions=8,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    batch = store_to_dataset(store, seq_len=5).with_format("torch")[:]["input_ids"]
    assert model(input_ids=batch, labels=batch).loss.isfinite()


@pytest.mark.parametrize("streaming", [False, True])
def test_there_and_back(store: TokenStore, tmp_path: Path, streaming: bool) -> None:
    dataset = store_to_dataset(store)
    given = dataset.to_iterable_dataset() if streaming else dataset
    again = dataset_to_store(given, tmp_path / "again", vocab_size=256)
    assert [document.tolist() for document in again] == DOCUMENTS
    again.verify()


def test_many_rows_in_batches_and_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 70_000, n).tolist() for n in rng.integers(0, 9, 2_500)]
    dataset = Dataset.from_dict({"ids": rows, "other": [0] * len(rows)}).select(range(7, 2_400))
    again = dataset_to_store(dataset, tmp_path / "s", vocab_size=70_000, column="ids")
    assert [document.tolist() for document in again] == rows[7:2_400]


def test_the_tokenizer_gives_vocabulary_and_end_of_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TokenizerSpec("byte"), iter(["abc"]))
    eos = tokenizer.eos_token_id
    dataset = Dataset.from_dict({"input_ids": [[1, 2], [3, eos], []]})
    store = dataset_to_store(dataset, tmp_path / "s", tokenizer=tokenizer)
    assert [document.tolist() for document in store] == [[1, 2, eos], [3, eos], [eos]]
    assert store.vocab_size == 257
    assert store.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"input_ids": [[1]]}, {}, "give vocab_size, or the tokenizer"),
        ({"ids": [[1]]}, {"vocab_size": 9}, r"no column 'input_ids'; it has \['ids'\]"),
        ({"input_ids": ["text"]}, {"vocab_size": 9}, "holds string, not lists of integer ids"),
        ({"input_ids": [[0.5]]}, {"vocab_size": 9}, "not lists of integer ids"),
        ({"input_ids": [[1], None]}, {"vocab_size": 9}, "a row from 0 to 1 is null"),
        ({"input_ids": [[1], [2, None]]}, {"vocab_size": 9}, "holds a null among its ids"),
        ({"input_ids": [[1], [2, 9]]}, {"vocab_size": 9}, "document 1, position 1: id 9"),
    ],
)
def test_what_is_no_ids_is_named(
    tmp_path: Path, columns: dict, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_to_store(Dataset.from_dict(columns), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
