"""Many documents in one call of the writer: the same store as one call for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_llm.data import TokenStore, TokenStoreWriter, megatron_index


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("limit", [megatron_index.MAX_SEQUENCE_TOKENS, 7])
def test_any_cut_into_calls_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(megatron_index, "MAX_SEQUENCE_TOKENS", limit)
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 300, draw.integers(0, 9)) for _ in range(200)]
    with TokenStoreWriter(tmp_path / "one", vocab_size=300) as writer:
        for document in documents:
            writer.add(document)
    flat = np.concatenate(documents).astype(np.int32)
    ends = np.cumsum([len(document) for document in documents])
    cuts = np.sort(draw.integers(0, len(flat) + 1, 25)).tolist()
    with TokenStoreWriter(tmp_path / "all", vocab_size=300) as writer:
        closed, start = 0, 0
        for stop in (*cuts, len(flat)):
            # Of documents that end where the call does, a random number is closed by the next one.
            last = np.searchsorted(ends, stop, side="right")
            first = max(closed, np.searchsorted(ends, stop, side="left"))
            until = len(ends) if stop == len(flat) else int(draw.integers(first, last + 1))
            writer.extend_all(flat[start:stop], (ends[closed:until] - start).tolist())
            closed, start = until, stop
    assert files(tmp_path / "all") == files(tmp_path / "one")
    store = TokenStore(tmp_path / "all")
    store.verify()
    for place, document in enumerate(documents):
        np.testing.assert_array_equal(store[place], document)


@pytest.mark.parametrize(
    ("ids", "ends", "message"),
    [
        ([1, 2, 3, 9, 4], [2, 3], "document 3, position 0: id 9"),
        ([9, 2], [1], "document 1, position 2: id 9"),
        ([1, 2, -1, 4], [1, 4], "document 2, position 1: id -1"),
    ],
)
def test_a_bad_id_is_named_by_its_place(
    tmp_path: Path, ids: list[int], ends: list[int], message: str
) -> None:
    writer = TokenStoreWriter(tmp_path / "store", vocab_size=5)
    writer.extend_all([1, 2, 3, 4], [2])  # document 0, and two ids of document 1
    with pytest.raises(ValueError, match=message):
        writer.extend_all(np.array(ids), ends)
    writer.abort()


@pytest.mark.parametrize("ends", [[3, 2], [5], [-1]])
def test_ends_lie_inside(tmp_path: Path, ends: list[int]) -> None:
    writer = TokenStoreWriter(tmp_path / "store", vocab_size=5)
    with pytest.raises(ValueError, match="ends must ascend from 0 to 4"):
        writer.extend_all([1, 2, 3, 4], ends)
    writer.abort()
