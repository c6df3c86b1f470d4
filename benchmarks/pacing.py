"""When a contender may compute: warm-up first, then one turn after another.

A contender lives in a process of its own for the whole run, so that compiled code, caches and the
allocator are warm. It calls `Pacer.step_done` after every step; the call blocks at the end of each
turn until this contender's next turn. So all contenders are measured in alternation (A B C A B C
...), only one computes at a time, and no framework's loop has to be taken apart for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.memory import PeakMemory

Message = dict[str, Any]


class UnavailableError(Exception):
    """A contender cannot take part here; the message says why."""


@dataclass(frozen=True)
class Pace:
    """How many steps are made, and which of them are timed.

    Attributes:
        warmup: Untimed steps at the start (compilation, allocator).
        rounds: Turns of each contender.
        steps: Timed steps in a turn.
        settle: Untimed steps at the start of each turn: the others have used the caches.
    """

    warmup: int = 3
    rounds: int = 5
    steps: int = 10
    settle: int = 1

    def __post_init__(self) -> None:
        for name, least in (("warmup", 1), ("rounds", 1), ("steps", 1), ("settle", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")

    @property
    def total_steps(self) -> int:
        """Steps of a contender over the whole run."""
        return self.warmup + self.rounds * (self.settle + self.steps)


class Pacer:
    """Counts a contender's steps, times its turns and waits between them.

    Args:
        pace: How many steps are made.
        report: Takes a message for the measuring process.
        wait: Returns when it is this contender's turn.
        device: ``"cpu"`` or ``"cuda"``; a GPU is waited for at the borders of a turn only.
    """

    def __init__(
        self,
        pace: Pace,
        *,
        report: Callable[[Message], None],
        wait: Callable[[], None],
        device: str = "cpu",
    ) -> None:
        self.pace, self.total_steps = pace, pace.total_steps
        self.units_per_step = 1.0  # what the rate counts: tokens, bytes, ...
        self.facts: Message = {}  # what the contender wants to have in its row
        self._report, self._wait, self._device = report, wait, device
        self._memory = PeakMemory(device)
        self._held: int | None = None
        self._count = 0
        self._in_turn = 0
        self._losses: list[Any] = []
        self._started = self._cpu_started = 0.0

    def begin(self) -> None:
        """Declare everything set up: memory beyond what is held now is counted as extra."""
        self._synchronize()
        self._held = self._memory.current()
        self._memory.reset()

    def step_done(self, loss: Any = None) -> None:
        """Count a step. ``loss`` may be a tensor: it is read at the end of the turn."""
        self._losses.append(loss)
        self._count += 1
        if self._count == 1:
            self._synchronize()
            self._report({"event": "first_step"})
        if self._count < self.pace.warmup:
            return
        if self._count == self.pace.warmup:
            self._synchronize()
            units = float(self.units_per_step)
            self._memory.release()
            self._report({"event": "ready", "units_per_step": units, **self._read(), **self.facts})
            self._next_turn()
            return
        self._in_turn += 1
        if self._in_turn == self.pace.settle:
            self._start_clock()
        if self._in_turn == self.pace.settle + self.pace.steps:
            self._end_turn()
            if self._count < self.total_steps:
                self._next_turn()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the clock what happens inside: waiting that a user would not wait for."""
        started, cpu_started = time.perf_counter(), time.process_time()
        yield
        self._started += time.perf_counter() - started
        self._cpu_started += time.process_time() - cpu_started

    def _next_turn(self) -> None:
        self._in_turn = 0
        self._wait()
        if not self.pace.settle:
            self._start_clock()

    def _start_clock(self) -> None:
        self._synchronize()
        if self._held is None:
            self._memory.reset()
        self._cpu_started, self._started = time.process_time(), time.perf_counter()

    def _end_turn(self) -> None:
        self._synchronize()
        seconds = time.perf_counter() - self._started
        cpu_seconds = time.process_time() - self._cpu_started
        peak = self._memory.peak()
        message = {
            "event": "turn",
            "seconds_per_step": seconds / self.pace.steps,
            "cpu_seconds_per_step": cpu_seconds / self.pace.steps,
            "peak_memory_bytes": peak,
            **self._read(),
        }
        if self._held is not None:
            message["extra_memory_bytes"] = max(0, peak - self._held)
        self._memory.release()
        self._report(message)

    def _read(self) -> Message:
        """Losses since the last report, as numbers."""
        losses = [float(loss) for loss in self._losses if loss is not None]
        self._losses = []
        return {"losses": losses} if losses else {}

    def _synchronize(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
