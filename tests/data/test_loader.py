"""The loader: one global order, each sample once, and a place that can be saved."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_llm.data import TokenStore, TokenStoreWriter
from lightning_llm.data.loader import TokenLoader
from lightning_llm.data.packing import ConcatWindows

# Python 3.12 and later warn of any fork beside torch's threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def make_rows(path: Path, count: int, first: int = 0) -> ConcatWindows:
    """Return ``count`` rows of 2 tokens; the first id of row i is ``first + 2 i``."""
    with TokenStoreWriter(path, vocab_size=10_000) as writer:
        writer.add(np.arange(first, first + 2 * count + 1))
    return ConcatWindows(TokenStore(path), 2)


@pytest.fixture
def rows(tmp_path) -> ConcatWindows:
    return make_rows(tmp_path / "s", 50)


def samples(batch) -> list[int]:
    """Return the row numbers in a batch; rows of padding have no target."""
    real = (batch["shift_labels"] != -100).any(dim=1)
    return (batch["input_ids"][real, 0] // 2).tolist()


def stream(rows, *, micro: int, world: int, epoch: int = 0, first: int = 0, **options):
    """Join what all ranks read in each micro-step, in rank order."""
    loaders = [
        TokenLoader(rows, micro_batch_size=micro, rank=r, world_size=world, **options)
        for r in range(world)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    for loader in loaders:
        loader.set_epoch(epoch)
        loader.seek(first)
    steps = list(zip(*loaders, strict=True))
    assert all(batch["input_ids"].shape == (micro, 2) for step in steps for batch in step)
    return [[sample for batch in step for sample in samples(batch)] for step in steps]


def flat(steps) -> list[int]:
    return [sample for step in steps for sample in step]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("micro", "world"), [(1, 1), (3, 1), (7, 1), (4, 2), (2, 4), (3, 5)])
def test_the_order_is_the_same_for_any_ranks_and_micro_batch_size(rows, micro, world, shuffle):
    reference = flat(stream(rows, micro=1, world=1, seed=3, shuffle=shuffle, epoch=2))
    assert sorted(reference) == list(range(50))
    steps = stream(rows, micro=micro, world=world, seed=3, shuffle=shuffle, epoch=2)
    assert flat(steps) == reference
    assert all(len(step) == micro * world for step in steps[:-1])


def test_workers_change_nothing(rows):
    options = {"micro_batch_size": 3, "shuffle": True, "seed": 1}
    state = torch.random.get_rng_state()
    without = [b["input_ids"] for b in TokenLoader(rows, **options)]
    with_two = [b["input_ids"] for b in TokenLoader(rows, num_workers=2, **options)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(without, with_two, strict=True))


def test_epochs_and_seeds_differ_and_come_back(rows):
    def order(epoch, seed=0):
        return flat(stream(rows, micro=5, world=1, epoch=epoch, seed=seed, shuffle=True))

    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)
    assert order(1) == order(1)
    assert flat(stream(rows, micro=5, world=1, epoch=1)) == list(range(50))


@pytest.mark.parametrize("count", range(1, 14))
def test_every_rank_gets_its_share_of_the_rest(tmp_path, count):
    rows = make_rows(tmp_path / "s", count)
    steps = stream(rows, micro=3, world=2)
    assert Counter(flat(steps)) == Counter(range(count))
    last = [
        len(samples(list(TokenLoader(rows, micro_batch_size=3, rank=r, world_size=2))[-1]))
        for r in range(2)
    ]
    assert max(last) - min(last) <= 1


def test_drop_last(rows):
    steps = stream(rows, micro=4, world=2, drop_last=True)
    assert len(steps) == 6
    assert flat(steps) == list(range(48))


def test_a_long_order_is_computed_in_blocks(tmp_path):
    rows = make_rows(tmp_path / "s", 4_999)  # more than one block of places
    reference = flat(stream(rows, micro=64, world=1, seed=1, shuffle=True))
    assert sorted(reference) == list(range(4_999))
    assert flat(stream(rows, micro=7, world=3, seed=1, shuffle=True)) == reference
    resumed = stream(rows, micro=64, world=1, seed=1, shuffle=True, first=70)
    assert flat(resumed) == reference[70 * 64 :]


@pytest.mark.parametrize("workers", [(0, 0), (2, 2), (0, 2), (2, 0)])
def test_a_saved_place_is_continued_exactly(rows, workers):
    options = {"micro_batch_size": 4, "shuffle": True, "seed": 9}
    loader = TokenLoader(rows, num_workers=workers[0], **options)
    loader.set_epoch(3)
    whole = [samples(batch) for batch in loader]
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    # Workers have read ahead by now; the place counts what was handed out.
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["epoch"], state["samples"]) == (3, 20)
    del iterator
    assert loader.state_dict() == state
    resumed = TokenLoader(rows, num_workers=workers[1], **options)
    resumed.load_state_dict(state)
    resumed.set_epoch(3)
    assert len(resumed) == len(loader)
    assert [samples(batch) for batch in resumed] == whole[5:]
    resumed.set_epoch(4)
    assert sorted(flat(samples(batch) for batch in resumed)) == list(range(50))


def test_other_ranks_continue_the_same_order(rows):
    reference = flat(stream(rows, micro=8, world=1, shuffle=True))
    loader = TokenLoader(rows, micro_batch_size=8, shuffle=True)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    loaders = [
        TokenLoader(rows, micro_batch_size=2, rank=r, world_size=2, shuffle=True) for r in (0, 1)
    ]
    for other in loaders:
        other.load_state_dict(state)
    joined = [s for step in zip(*loaders, strict=True) for batch in step for s in samples(batch)]
    assert joined == reference[24:]
    misfit = TokenLoader(rows, micro_batch_size=5, shuffle=True)
    with pytest.raises(ValueError, match=r"after 24 samples .* takes 5 at a time"):
        misfit.load_state_dict(state)


def test_the_end_of_an_epoch_is_a_place_too(rows):
    loader = TokenLoader(rows, micro_batch_size=8, shuffle=True)
    assert len(list(loader)) == 7
    state = loader.state_dict()
    assert state["samples"] == 50
    resumed = TokenLoader(rows, micro_batch_size=3, shuffle=True)
    resumed.load_state_dict(state)
    assert list(resumed) == []
    resumed.set_epoch(1)
    assert len(list(resumed)) == 17


def test_changed_data_is_refused(rows, tmp_path):
    state = TokenLoader(rows, micro_batch_size=2, seed=1).state_dict()
    other = TokenLoader(make_rows(tmp_path / "t", 50, first=1), micro_batch_size=2, seed=2)
    with pytest.raises(ValueError, match=r"seed: 1 in the checkpoint, 2 now; store: '.*' in the"):
        other.load_state_dict(state)
    lenient = TokenLoader(rows, micro_batch_size=2, seed=2, strict_resume=False)
    with pytest.warns(UserWarning, match="seed: 1 in the checkpoint, 2 now"):
        lenient.load_state_dict(state)
    with pytest.raises(ValueError, match="loader state version 99"):
        other.load_state_dict(state | {"version": 99})


def test_all_bad_arguments_are_named_at_once(rows):
    with pytest.raises(ValueError, match=r"micro_batch_size=0 .*; num_workers=-1 .*; rank=2 "):
        TokenLoader(rows, micro_batch_size=0, num_workers=-1, rank=2, world_size=2)
