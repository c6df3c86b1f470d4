"""Ranks that wait for one that hangs end soon, and say why."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest

from lightning_llm.callbacks import StallGuard
from runs import Net, batches, loader, start_ranks, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.*"),
]


@pytest.mark.distributed
@pytest.mark.parametrize("hanging", [0, 1])
def test_a_hanging_rank_ends_all_with_a_message(hanging: int) -> None:
    ranks = start_ranks("stalled_rank.py", 2, str(hanging))
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, output) in enumerate(zip(ranks, outputs)):
        assert rank.returncode == 1, output
        assert f"StallGuard, rank {number} of 2: nothing has happened for 4 s" in output
        assert "since training batch 2" in output
    assert "on_train_batch_start" in outputs[hanging]  # where it hangs


def test_a_run_that_goes_on_is_left_alone() -> None:
    guard = StallGuard(timeout=0.4, first_timeout=0.4)

    class TwoRanks:
        """What the guard reads of a trainer with two ranks."""

        world_size, global_rank = 2, 0

    guard.setup(TwoRanks(), None, "fit")  # type: ignore[arg-type]
    for index in range(12):
        time.sleep(0.1)
        guard.on_train_batch_end(TwoRanks(), None, None, None, index)  # type: ignore[arg-type]
    guard.teardown(TwoRanks(), None, "fit")  # type: ignore[arg-type]
    time.sleep(0.6)  # nothing ends this process any more


def test_one_rank_is_not_watched(monkeypatch: Any) -> None:
    guard = StallGuard(timeout=0.01, first_timeout=0.01)
    trainer(callbacks=[guard]).fit(Net(), loader(batches(5)))
    assert guard._done is None


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": 1, "first_timeout": -1}])
def test_timeouts_are_positive(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a positive number of seconds"):
        StallGuard(**options)


def test_the_rank_that_hangs_is_stopped_with_the_launcher() -> None:
    """A stopped process cannot act; the rank that started it does."""
    stopped = subprocess.Popen(["sleep", "60"])
    killed = []

    class Launcher:
        def kill(self, signum: int) -> None:
            killed.append(signum)
            stopped.send_signal(signum)

    from lightning_llm.callbacks import stall_guard

    class Trainer:
        world_size, global_rank = 2, 0
        strategy = type("Strategy", (), {"launcher": Launcher()})

    left = []
    original = stall_guard.os._exit
    stall_guard.os._exit = left.append  # type: ignore[assignment]
    try:
        stall_guard._end(Trainer(), "nothing")  # type: ignore[arg-type]
    finally:
        stall_guard.os._exit = original
    assert left == [1]
    assert stopped.wait(timeout=10) == -killed[0]
