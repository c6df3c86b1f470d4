"""The global order under any split, and a run that is stopped and continued in any way."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightning_llm.data.loader import TokenLoader


class Numbers:
    """A data set whose row i is the number i: what a loader hands out is what it asked for."""

    seq_len = 1

    def __init__(self, count: int) -> None:
        self.count = count
        self.fingerprint = {"numbers": count}

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices):
        return {"row": np.asarray(indices)}


def loaders(rows: Numbers, micro: int, world: int, seed: int = 0) -> list[TokenLoader]:
    return [
        TokenLoader(
            rows, micro_batch_size=micro, rank=rank, world_size=world, shuffle=True, seed=seed
        )
        for rank in range(world)
    ]


def taken(step) -> list[int]:
    """The samples of one micro-step of all ranks, in rank order."""
    return [int(row) for batch in step for row in batch["row"] if row >= 0]


@given(
    st.integers(0, 200),
    st.integers(1, 7),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(-5, 2**40),
    st.integers(0, 3),
)
def test_ranks_and_micro_batches_split_one_order(count, micro, world, seed, epoch):
    def order(micro: int, world: int) -> list[int]:
        group = loaders(Numbers(count), micro, world, seed)
        for loader in group:
            loader.set_epoch(epoch)
        return [sample for step in zip(*group, strict=True) for sample in taken(step)]

    split = order(micro, world)
    assert split == order(1, 1)
    assert sorted(split) == list(range(count))


GLOBAL_BATCH = 8


class StoppedAndContinued(RuleBasedStateMachine):
    """Steps, saves, kills and resumes on other ranks: the order is that of one quiet run."""

    @initialize(count=st.integers(1, 60), world=st.sampled_from([1, 2, 4, 8]))
    def start(self, count: int, world: int) -> None:
        self.rows, self.epoch, self.seen, self.saved = Numbers(count), 0, [], None
        [reference] = loaders(self.rows, GLOBAL_BATCH, 1)
        self.expected = []
        for epoch in range(12):
            reference.set_epoch(epoch)
            self.expected += [sample for batch in reference for sample in taken([batch])]
        self.run_on(world, None)

    def run_on(self, world: int, state: str | None) -> None:
        self.group = loaders(self.rows, GLOBAL_BATCH // world, world)
        for loader in self.group:
            if state is not None:
                loader.load_state_dict(json.loads(state))
        self.epoch = self.group[0].epoch
        self.steps = zip(*self.group, strict=True)

    @precondition(lambda self: self.epoch < 11)
    @rule()
    def step(self) -> None:
        step = next(self.steps, None)
        if step is None:
            self.epoch += 1
            for loader in self.group:
                loader.set_epoch(self.epoch)
            self.steps = zip(*self.group, strict=True)
            return
        self.seen += taken(step)

    @rule()
    def save(self) -> None:
        states = {json.dumps(loader.state_dict(), sort_keys=True) for loader in self.group}
        assert len(states) == 1  # any rank's will do
        [state] = states
        assert len(state) < 500
        self.saved = state, len(self.seen)

    @precondition(lambda self: self.saved is not None)
    @rule(world=st.sampled_from([1, 2, 4, 8]))
    def kill_and_resume(self, world: int) -> None:
        state, count = self.saved
        del self.seen[count:]
        self.run_on(world, state)

    @invariant()
    def order_is_that_of_a_quiet_run(self) -> None:
        if hasattr(self, "seen"):
            assert self.seen == self.expected[: len(self.seen)]


TestStoppedAndContinued = StoppedAndContinued.TestCase
TestStoppedAndContinued.settings = settings(max_examples=40, stateful_step_count=40)
