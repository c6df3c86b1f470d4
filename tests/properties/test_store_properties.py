"""Stores and packing for any documents: nothing lost, nothing twice, no damage unnoticed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from stores import VOCAB_SIZE, documents_of, stored

from lightning_llm.batches import IGNORE_INDEX
from lightning_llm.data import TokenStore
from lightning_llm.data.packing import ConcatWindows, PackedDocuments

SEQ_LENS = st.integers(1, 9)


@given(documents_of(), st.sampled_from([300, 65_000, VOCAB_SIZE]))
def test_what_is_written_is_read(documents, vocab_size):
    documents = [[token % vocab_size for token in document] for document in documents]
    with stored(documents, vocab_size) as store:
        assert [store[i].tolist() for i in range(len(store))] == documents
        flat = [token for document in documents for token in document]
        assert store.tokens(0, store.num_tokens).tolist() == flat
        store.verify()


@given(
    documents_of(max_length=30),
    st.data(),
    st.sampled_from(["tokens.bin", "tokens.idx", "meta.json"]),
    st.sampled_from(["cut", "flip", "grow"]),
)
def test_a_damaged_store_is_never_read_as_a_whole_one(documents, data, name, damage):
    assume(any(documents))
    with stored(documents) as store:
        expected = [store[i].tolist() for i in range(len(store))]
        file = store.path / name
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if damage == "cut":
            del content[place:]
        elif damage == "grow":
            content += bytes(1 + place)
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        try:
            damaged = TokenStore(store.path)
            damaged.verify()
        except (ValueError, FileNotFoundError) as error:
            assert str(store.path) in str(error)
        else:
            # A bit of the metadata that says nothing of the tokens, such as a date.
            assert name == "meta.json"
            assert [damaged[i].tolist() for i in range(len(damaged))] == expected


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents in which every token is a number of its own."""
    borders = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return [list(range(first, last)) for first, last in pairwise(borders)]


def all_targets(rows) -> list[tuple[int, int]]:
    """Every (input id, target) of all rows at positions with a target."""
    if not len(rows):
        return []
    batch = rows.__getitems__(range(len(rows)))
    labels = batch["shift_labels"]
    real = labels != IGNORE_INDEX
    return list(zip(batch["input_ids"][real].tolist(), labels[real].tolist()))


@given(st.lists(st.integers(0, 25), max_size=10), SEQ_LENS)
def test_every_token_but_the_first_is_a_target_once(lengths, seq_len):
    documents = numbered(lengths)
    stream = [token for document in documents for token in document]
    with stored(documents) as store:
        targets = all_targets(ConcatWindows(store, seq_len))
    assert sorted(targets) == sorted(pairwise(stream))


@pytest.mark.parametrize("packing", ["concat", "best_fit", "pad"])
@given(st.lists(st.integers(0, 25), max_size=10), SEQ_LENS)
def test_targets_never_cross_documents(packing, lengths, seq_len):
    documents = numbered(lengths)
    with stored(documents) as store:
        rows = (
            ConcatWindows(store, seq_len, mask_documents=True)
            if packing == "concat"
            else PackedDocuments(store, seq_len, one_per_row=packing == "pad")
        )
        targets = all_targets(rows)
    assert Counter(targets) == Counter(pair for one in documents for pair in pairwise(one))


@given(st.lists(st.integers(0, 25), min_size=1, max_size=10), SEQ_LENS)
def test_documents_and_positions_tell_pieces_apart(lengths, seq_len):
    """Within one document id tokens follow each other, and positions count from 0."""
    with stored(numbered(lengths)) as store:
        rows = PackedDocuments(store, seq_len)
        if not len(rows):
            return
        batch = {
            name: tensor.numpy() for name, tensor in rows.__getitems__(range(len(rows))).items()
        }
    for row in range(len(batch["input_ids"])):
        ids, documents = batch["input_ids"][row], batch["document_ids"][row]
        for document in set(documents.tolist()) - {-1}:
            piece = ids[documents == document]
            assert (np.diff(piece) == 1).all()
            positions = batch["position_ids"][row][documents == document]
            assert positions.tolist() == list(range(len(piece)))


@pytest.mark.parametrize("packing", ["concat", "best_fit", "pad"])
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), SEQ_LENS)
def test_the_documents_of_a_row_are_those_of_its_tokens(packing, lengths, seq_len):
    documents = numbered(lengths)
    with stored(documents) as store:
        rows = (
            ConcatWindows(store, seq_len)
            if packing == "concat"
            else PackedDocuments(store, seq_len, one_per_row=packing == "pad")
        )
        owner = {token: number for number, one in enumerate(documents) for token in one}
        for row in range(len(rows)):
            batch = rows.__getitems__([row])
            real = batch["shift_labels"] != IGNORE_INDEX
            tokens = [*batch["input_ids"][real].tolist(), *batch["shift_labels"][real].tolist()]
            assert rows.documents(row) == sorted({owner[token] for token in tokens})
