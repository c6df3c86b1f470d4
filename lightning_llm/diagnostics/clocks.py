"""Marks in time, as the device that does the work sees them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks are taken while training runs, and turned into seconds once it is over."""

    def mark(self) -> Any:
        """Remember the present moment; makes nobody wait."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Return the time from each mark to the next."""


class HostClock:
    """The host's clock: on a CPU, calls return when their work is done."""

    def mark(self) -> float:
        """Read the host's clock."""
        return time.perf_counter()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """Return the time from each mark to the next."""
        return [end - start for start, end in pairwise(marks)]


class CudaClock:
    """Events in the stream: time is charged to what the GPU was working on, or waiting for.

    A host that prepares the next step while the GPU computes costs nothing here, which is the
    truth about the speed of the run.
    """

    def mark(self) -> torch.cuda.Event:
        """Queue an event behind the work queued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        """Wait for the last event; return the time from each to the next."""
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairwise(marks)]


class WaitingClock(HostClock):
    """Waits for the device before it reads the host's clock, where there are no timed events."""

    def mark(self) -> float:
        """Wait for the device, then read the host's clock."""
        torch.accelerator.synchronize()
        return super().mark()


def clock_of(device: torch.device) -> Clock:
    """Return the clock that measures work on a device."""
    if device.type == "cpu":
        return HostClock()
    return CudaClock() if device.type == "cuda" else WaitingClock()
