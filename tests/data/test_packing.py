"""Packing: every target once, documents kept apart, padding without targets."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_llm.data import TokenStore, TokenStoreWriter
from lightning_llm.data.best_fit import best_fit
from lightning_llm.data.packing import ConcatWindows, PackedDocuments

PAD = 7


def make_store(path: Path, sizes: list[int]) -> TokenStore:
    """Write documents whose ids are all different, so that an id tells its place."""
    with TokenStoreWriter(path, vocab_size=100_000) as writer:
        start = 100
        for size in sizes:
            writer.add(np.arange(start, start + size))
            start += size
    return TokenStore(path)


def random_sizes(seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 24, rng.integers(1, 40)).tolist()


def all_rows(rows):
    return {name: t.numpy() for name, t in rows.__getitems__(range(len(rows))).items()}


def pairs(batch) -> Counter:
    """Count the (input, target) pairs that are trained on."""
    valid = batch["shift_labels"] != -100
    return Counter(zip(batch["input_ids"][valid], batch["shift_labels"][valid]))


def expected_pairs(store: TokenStore, *, across: bool) -> Counter:
    stream = store.tokens(0, store.num_tokens).tolist()
    borders = set(store.document_offsets.tolist())
    return Counter(
        (stream[i - 1], stream[i]) for i in range(1, len(stream)) if across or i not in borders
    )


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("packing", ["concat", "masked", "best_fit", "pad"])
def test_every_target_exactly_once(tmp_path, packing, seed, seq_len):
    store = make_store(tmp_path / "s", random_sizes(seed))
    if packing in ("concat", "masked"):
        rows = ConcatWindows(store, seq_len, mask_documents=packing == "masked", pad_id=PAD)
    else:
        rows = PackedDocuments(store, seq_len, one_per_row=packing == "pad", pad_id=PAD)
    batch = all_rows(rows)
    assert pairs(batch) == expected_pairs(store, across=packing == "concat")
    assert batch["input_ids"].dtype == batch["shift_labels"].dtype == np.int64
    held = (batch["input_ids"] != PAD) & (batch["input_ids"] >= 100)
    if packing in ("best_fit", "pad"):
        assert held.mean() == pytest.approx(rows.fill_fraction) if len(rows) else True
        assert (batch["input_ids"][~held] == PAD).all()
    assert 0 <= rows.fill_fraction <= 1


def test_concat_windows_by_hand(tmp_path):
    rows = ConcatWindows(make_store(tmp_path / "s", [3, 4]), 4, mask_documents=True, pad_id=PAD)
    batch = all_rows(rows)
    assert batch["input_ids"].tolist() == [[100, 101, 102, 103], [104, 105, 106, PAD]]
    assert batch["shift_labels"].tolist() == [[101, 102, -100, 104], [105, 106, -100, -100]]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1], [0, 0, -1, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert rows.fill_fraction == 6 / 8


def test_best_fit_by_hand(tmp_path):
    # Targets: 5 (cut into 4 + 1), 2, 1, 0
    rows = PackedDocuments(make_store(tmp_path / "s", [6, 3, 2, 1]), 4, pad_id=PAD)
    batch = all_rows(rows)
    assert batch["input_ids"].tolist() == [[100, 101, 102, 103], [106, 107, 104, 109]]
    assert batch["shift_labels"].tolist() == [[101, 102, 103, 104], [107, 108, 105, 110]]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert rows.fill_fraction == 1


def test_one_document_per_row_by_hand(tmp_path):
    rows = PackedDocuments(make_store(tmp_path / "s", [3, 7]), 4, one_per_row=True, pad_id=PAD)
    assert set(batch := all_rows(rows)) == {"input_ids", "shift_labels"}
    assert batch["input_ids"].tolist() == [
        [100, 101, PAD, PAD],
        [103, 104, 105, 106],
        [107, 108, PAD, PAD],
    ]
    assert batch["shift_labels"][2].tolist() == [108, 109, -100, -100]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("packing", ["masked", "best_fit"])
def test_document_ids_and_positions_tell_documents_apart(tmp_path, packing, seed):
    store = make_store(tmp_path / "s", random_sizes(seed))
    if packing == "masked":
        rows = ConcatWindows(store, 8, mask_documents=True)
    else:
        rows = PackedDocuments(store, 8)
    batch = all_rows(rows)
    borders = store.document_offsets
    for ids, labels, documents, positions in zip(
        batch["input_ids"], batch["shift_labels"], batch["document_ids"], batch["position_ids"]
    ):
        real = documents >= 0
        assert (labels[~real] == -100).all()
        origin = np.searchsorted(borders, ids - 100, side="right")  # document of each token
        for number in np.unique(documents[real]):
            inside = np.flatnonzero(documents == number)
            assert len(set(origin[inside])) == 1
            assert positions[inside].tolist() == list(range(len(inside)))
            # one run of consecutive tokens
            assert (np.diff(ids[inside]) == 1).all()
            assert (np.diff(inside) == 1).all()


@pytest.mark.parametrize("packing", ["concat", "masked", "best_fit", "pad"])
def test_a_batch_is_its_rows_whatever_their_order_and_padding_has_no_target(tmp_path, packing):
    store = make_store(tmp_path / "s", [*random_sizes(1), 40])
    rows = {
        "concat": lambda: ConcatWindows(store, 8),
        "masked": lambda: ConcatWindows(store, 8, mask_documents=True),
        "best_fit": lambda: PackedDocuments(store, 8),
        "pad": lambda: PackedDocuments(store, 8, one_per_row=True),
    }[packing]()
    wanted = [len(rows) - 1, 0, 2, -1, 0]
    batch = rows.__getitems__(np.array(wanted))
    for name, tensor in batch.items():
        assert tensor.shape == (5, 8)
        assert tensor.is_contiguous()
        for row, index in enumerate(wanted):
            if index >= 0:
                assert torch.equal(tensor[row], rows[index][name])
    assert (batch["shift_labels"][3] == -100).all()
    if "document_ids" in batch:
        assert (batch["document_ids"][3] == -1).all()
    assert torch.equal(rows[-1]["input_ids"], rows[len(rows) - 1]["input_ids"])
    with pytest.raises(IndexError, match=f"row {len(rows)} of {len(rows)}"):
        rows[len(rows)]


@pytest.mark.parametrize("sizes", [[], [0], [1], [1, 0, 1]])
def test_stores_with_next_to_nothing(tmp_path, sizes):
    store = make_store(tmp_path / "s", sizes)
    assert len(ConcatWindows(store, 4)) == (1 if sum(sizes) > 1 else 0)
    assert len(PackedDocuments(store, 4)) == 0
    assert len(PackedDocuments(store, 4, one_per_row=True)) == 0


@pytest.mark.parametrize("packing", [ConcatWindows, PackedDocuments])
def test_pickles_hold_no_tokens(tmp_path, packing):
    store = make_store(tmp_path / "s", [50_000])
    rows = packing(store, 8)
    data = pickle.dumps(rows)
    # best fit carries 12 bytes a piece and 8 a row; windows carry nothing
    assert len(data) < (700 if packing is ConcatWindows else 24 * len(rows) + 2_000)
    copy = pickle.loads(data)
    assert torch.equal(copy[3]["input_ids"], rows[3]["input_ids"])
    assert copy.fingerprint == rows.fingerprint


def test_fingerprints_tell_packings_apart(tmp_path):
    store = make_store(tmp_path / "s", [50])
    made = [
        ConcatWindows(store, 8),
        ConcatWindows(store, 9),
        ConcatWindows(store, 8, mask_documents=True),
        PackedDocuments(store, 8),
        PackedDocuments(store, 8, one_per_row=True),
    ]
    assert len({str(rows.fingerprint) for rows in made}) == len(made)


@pytest.mark.parametrize("packing", [ConcatWindows, PackedDocuments])
def test_seq_len_must_be_positive(tmp_path, packing):
    with pytest.raises(ValueError, match="seq_len=0 must be at least 1"):
        packing(make_store(tmp_path / "s", [5]), 0)


def slow_best_fit(lengths: np.ndarray, capacity: int) -> list[int]:
    """Place one piece at a time, longest first, in the fullest row with room; returns the rooms."""
    room: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row in range(len(room)) if room[row] >= length]
        if fitting:
            room[min(fitting, key=lambda row: room[row])] -= length
        else:
            room.append(capacity - length)
    return sorted(room)


@pytest.mark.parametrize("seed", range(40))
def test_best_fit_is_best_fit(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 40))
    lengths = rng.integers(1, capacity + 1, rng.integers(0, 200))
    order, offsets = best_fit(lengths, capacity)
    assert np.array_equal(np.sort(order), np.arange(len(lengths)))
    used = np.array([lengths[order[a:b]].sum() for a, b in pairwise(offsets)], dtype=int)
    assert sorted((capacity - used).tolist()) == slow_best_fit(lengths, capacity)
    again = best_fit(lengths, capacity)
    assert np.array_equal(again[0], order)
    assert np.array_equal(again[1], offsets)


def test_best_fit_wastes_little():
    lengths = np.minimum(np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int) + 1, 1024)
    _, offsets = best_fit(lengths, 1024)
    assert lengths.sum() / ((len(offsets) - 1) * 1024) > 0.999
