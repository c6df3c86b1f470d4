"""Processes that take turns, and what becomes of one that cannot go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pacing import Pace, Pacer, UnavailableError
from benchmarks.race import Task, first_steps, race

HERE = str(Path(__file__).parent)
PACE = Pace(warmup=1, rounds=2, steps=2, settle=1)


def write_turns(options: dict[str, Any], pacer: Pacer) -> None:
    """Append the name to a file at each step."""
    for _ in range(pacer.total_steps):
        with open(options["file"], "a") as file:
            file.write(options["name"])
        print("a contender may print")
        pacer.step_done(1.5)


def unavailable(options: dict[str, Any], pacer: Pacer) -> None:
    """A contender that is not installed."""
    raise UnavailableError("not for this machine")


def broken(options: dict[str, Any], pacer: Pacer) -> None:
    """A contender that fails in its second turn."""
    for step in range(pacer.total_steps):
        if step == 5:
            raise RuntimeError("out of something")
        pacer.step_done()


def silent(options: dict[str, Any], pacer: Pacer) -> None:
    """A contender that never makes a step."""
    time.sleep(60)


def slow_to_start(options: dict[str, Any], pacer: Pacer) -> None:
    """A contender whose start takes half a second."""
    time.sleep(0.5)
    for _ in range(pacer.total_steps):
        pacer.step_done()


def test_contenders_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "turns"
    options = {"file": str(file)}
    tasks = [
        Task("a", "test_race:write_turns", {**options, "name": "a"}),
        Task("none", "test_race:unavailable"),
        Task("broken", "test_race:broken"),
        Task("b", "test_race:write_turns", {**options, "name": "b"}),
    ]
    rows = race(tasks, PACE, environment={"PYTHONPATH": HERE})
    assert file.read_text() == "ab" + 2 * "aaabbb"  # warm-up, then rounds of 1 + 2 steps
    assert [row["status"] for row in rows] == ["ok", "skipped", "failed", "ok"]
    a, none, failed, _ = rows
    assert len(a["seconds_per_step"]) == len(a["peak_memory_bytes"]) == 2
    assert a["losses"] == [1.5, 1.5]
    assert a["first_losses"] == [1.5]
    assert a["versions"]["torch"]
    assert none["reason"] == "not for this machine"
    assert failed["reason"] == "RuntimeError: out of something"
    assert any("RuntimeError" in line for line in failed["log"])


def test_a_silent_contender_is_stopped() -> None:
    started = time.monotonic()
    tasks = [Task("silent", "test_race:silent")]
    [row] = race(tasks, PACE, environment={"PYTHONPATH": HERE}, limit_s=5)
    assert row["status"] == "failed"
    assert row["reason"] == "no answer in 5 s"
    assert time.monotonic() - started < 40


def test_start_up_is_measured_in_new_processes() -> None:
    tasks = [Task("a", "test_race:slow_to_start")]
    [row] = first_steps(tasks, 2, environment={"PYTHONPATH": HERE})
    # Twice the half second: a process that lived on would have slept only once.
    assert len(row["startup_seconds"]) == 2
    assert min(row["startup_seconds"]) > 0.5


@pytest.mark.parametrize("run", ["benchmarks.nowhere:run", "benchmarks.race:nothing"])
def test_a_contender_that_does_not_exist_is_no_hang(run: str) -> None:
    [row] = race([Task("x", run)], PACE)
    assert row["status"] in ("failed", "skipped")
