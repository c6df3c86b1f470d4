"""Which steps are timed, and when a contender waits."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.memory import PeakMemory
from benchmarks.pacing import Message, Pace, Pacer


def drive(pace: Pace) -> tuple[list[str], list[Message]]:
    """Make all steps; returns what happened, in order, and the messages."""
    happened: list[str] = []
    messages: list[Message] = []

    def report(message: Message) -> None:
        happened.append(message["event"])
        messages.append(message)

    pacer = Pacer(pace, report=report, wait=lambda: happened.append("wait"))
    pacer.units_per_step = 7
    for step in range(pacer.total_steps):
        happened.append("step")
        pacer.step_done(float(step))
    return happened, messages


@pytest.mark.parametrize("settle", [0, 1])
def test_a_contender_waits_before_each_turn_and_not_after_the_last(settle: int) -> None:
    happened, messages = drive(Pace(warmup=2, rounds=2, steps=3, settle=settle))
    turn = ["wait", *["step"] * (settle + 3), "turn"]
    assert happened == ["step", "first_step", "step", "ready", *turn, *turn]
    ready, first, _ = messages[1:]
    assert ready["units_per_step"] == 7
    assert ready["losses"] == [0.0, 1.0]
    assert first["losses"] == [2.0 + step for step in range(settle + 3)]


def test_warm_up_and_settling_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("benchmarks.pacing.time.perf_counter", lambda: clock["now"])
    turns: list[Message] = []
    pacer = Pacer(
        Pace(warmup=1, rounds=1, steps=2, settle=1), report=turns.append, wait=lambda: None
    )
    for seconds in (100.0, 50.0, 3.0, 5.0):  # warm-up, settling, two timed steps
        clock["now"] += seconds
        pacer.step_done()
    assert turns[-1]["seconds_per_step"] == pytest.approx(4.0)


def test_what_happens_while_paused_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("benchmarks.pacing.time.perf_counter", lambda: clock["now"])
    turns: list[Message] = []
    pacer = Pacer(
        Pace(warmup=1, rounds=1, steps=1, settle=0), report=turns.append, wait=lambda: None
    )
    pacer.step_done()
    clock["now"] += 2.0
    with pacer.paused():
        clock["now"] += 30.0
    pacer.step_done()
    assert turns[-1]["seconds_per_step"] == pytest.approx(2.0)


def test_a_pace_without_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        Pace(rounds=0)


def test_extra_memory_is_what_was_held_after_begin() -> None:
    messages: list[Message] = []
    pacer = Pacer(
        Pace(warmup=1, rounds=1, steps=1, settle=0), report=messages.append, wait=lambda: None
    )
    pacer.begin()
    held = np.ones(8 << 20)  # 64 MiB, touched
    pacer.step_done(float(held[0]))
    del held
    pacer.step_done()
    assert messages[-1]["extra_memory_bytes"] == pytest.approx(64 << 20, rel=0.25)


@pytest.mark.skipif(not hasattr(PeakMemory, "reset"), reason="the peak can be reset on Linux only")
def test_the_peak_is_forgotten_at_a_reset() -> None:
    memory = PeakMemory("cpu")
    np.ones(16 << 20)
    memory.reset()
    if memory.peak() - memory.current() > 64 << 20:
        pytest.skip("this system does not reset the peak of a process")
    held = np.ones(16 << 20)  # 128 MiB
    assert memory.peak() - memory.current() < 16 << 20
    del held
    assert memory.peak() - memory.current() > 100 << 20
