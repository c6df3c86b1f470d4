"""Wall time of training, without the breaks."""

from __future__ import annotations

import time


class Stopwatch:
    """Runs from the start of a batch; a break lasts until the start of the next batch."""

    def __init__(self) -> None:
        self._seconds = 0.0  # of the current lap, up to the last break
        self._between_batches = 0.0
        self._running_since: float | None = None
        self._batch_ended_at: float | None = None

    def batch_started(self) -> None:
        """Start, or go on."""
        now = time.perf_counter()
        if self._running_since is None:
            self._running_since = now
        elif self._batch_ended_at is not None:
            self._between_batches += now - self._batch_ended_at

    def batch_ended(self) -> None:
        """What follows, up to the next batch, is time between batches."""
        self._batch_ended_at = time.perf_counter()

    @property
    def is_running(self) -> bool:
        """Whether there is time to stop."""
        return self._running_since is not None

    def pause(self) -> None:
        """Stop until the next batch starts."""
        if self._running_since is not None:
            self._seconds += time.perf_counter() - self._running_since
        self._running_since = self._batch_ended_at = None

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap without breaks, and those of them between batches."""
        if self._running_since is not None:
            now = time.perf_counter()
            self._seconds += now - self._running_since
            self._running_since = now
        result = self._seconds, self._between_batches
        self._seconds = self._between_batches = 0.0
        return result
