"""Tokens, FLOPs and time of training, added up between log points."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_llm.callbacks._flops import FlopsPerToken, TokenFlops, find_peak, find_token_flops
from lightning_llm.callbacks._log_point import LogPoint
from lightning_llm.callbacks._meeting import data_replica
from lightning_llm.callbacks._stopwatch import Stopwatch
from lightning_llm.callbacks._token_count import TokenCount


class Work(NamedTuple):
    """What all ranks have done together; FLOPs are 0 where they are not known."""

    tokens: float = 0.0
    flops: float = 0.0
    causal_flops: float = 0.0

    def plus(self, other: Work) -> Work:
        """The sum of both."""
        return Work(*(a + b for a, b in zip(self, other)))


class Interval(NamedTuple):
    """What happened between two readings of the clock."""

    seconds: float
    data_seconds: float
    steps: int
    work: Work
    is_warmup: bool


class SpeedMeter:
    """Measures the last ``window`` optimizer steps, and counts the tokens of the whole run.

    The first step is left out once there is another, for it includes compilation; so are breaks.

    Args:
        window: Optimizer steps, rounded up to whole log intervals.
        flops_per_token: As for `SpeedMonitor`.
        peak_flops: As for `SpeedMonitor`.
    """

    def __init__(
        self,
        window: int,
        flops_per_token: FlopsPerToken | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self.window = window
        self.tokens_seen = 0
        self.crashed = False  # other ranks may be gone: nothing may wait for them
        self.token_flops: TokenFlops | None = None
        self.peak: float | None = None
        self._given = flops_per_token, peak_flops
        self._count = TokenCount()  # of the optimizer steps taken since the last log point
        self._window = TokenCount()  # of the micro-batches since the last optimizer step
        self._batch: Any = None  # the batch that has begun and is not counted yet
        self._finds_tokens = False
        self._work = Work()  # of the interval that is not closed yet
        self._steps = 0
        self._global_step = self._counted_step = 0
        self._watch = Stopwatch()
        self._intervals: deque[Interval] = deque()

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a run."""
        flops, peak = self._given
        self.token_flops = find_token_flops(flops, pl_module)
        self.peak = peak or find_peak(trainer)
        self.crashed = False
        self._count.clear()
        self._window.clear()
        self._batch = None
        self._finds_tokens = False
        self._watch = Stopwatch()
        self._intervals.clear()
        self._work = Work()
        self._steps = 0
        self._global_step = self._counted_step = trainer.global_step
        LogPoint.of(trainer).join(
            self,
            lambda: self._reduced(trainer),
            count=lambda batch, outputs: self._count_batch(trainer, outputs),
        )

    def batch_started(self, batch: Any) -> None:
        """The clock runs from here."""
        self._batch = batch
        self._watch.batch_started()

    def _count_batch(self, trainer: Trainer, outputs: Any = None) -> None:
        """Count the batch that ends, once, whoever asks first."""
        if self._batch is not None:
            self._window.add(self._batch, outputs)
            self._batch = None
        if trainer.global_step != self._counted_step:
            self._counted_step = trainer.global_step
            self._finds_tokens = self._finds_tokens or not self._window.is_empty
            self._count.extend(self._window)
            self._window.clear()

    def batch_ended(self, trainer: Trainer, batch: Any, outputs: Any) -> dict[str, float] | None:
        """Count a batch; what was measured, if its optimizer step is a log point."""
        self._count_batch(trainer, outputs)
        before, step = self._global_step, trainer.global_step
        values = None
        if step != before:
            self._global_step = step
            self._steps += 1
            is_log_point = LogPoint.lies_between(trainer, before, step)
            if is_log_point or not self._intervals:
                read = None
                if is_log_point:  # before the clock is read: the work is done then
                    read = LogPoint.of(trainer).read(self, step, batch, outputs)
                self._close_interval(trainer, read)
            if is_log_point:
                values = self._measured(trainer)
        self._watch.batch_ended()
        return values

    def pause(self, trainer: Trainer) -> None:
        """Stop the clock until the next training batch, once the queued work is done."""
        if self._watch.is_running:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize(trainer.strategy.root_device)
            self._watch.pause()

    def collect(self, trainer: Trainer, values: list[float] | None = None) -> None:
        """Add what was counted on the device to the open interval; waits if not given it.

        Micro-batches since the last optimizer step are left for later: where a run resumes from
        here, it takes that whole window again.
        """
        if values is None and trainer.global_step != self._counted_step:
            self._count_batch(trainer)  # saved by a callback that stands before this one
        work = Work(*(self._reduced(trainer).tolist() if values is None else values))
        self._count.clear()
        self.tokens_seen += round(work.tokens)
        self._work = self._work.plus(work)

    def _reduced(self, trainer: Trainer) -> Tensor:
        """Summed over the ranks that hold different data; tensor-parallel ranks hold the same."""
        work = self._count.work(self.token_flops)
        if trainer.world_size == 1:
            return work
        _, replicas = data_replica(trainer)
        if self.crashed:  # as if all ranks had seen as much as this one
            return work * replicas
        total = trainer.strategy.reduce(work.to(trainer.strategy.root_device), reduce_op="sum")
        return total * (replicas / trainer.world_size)

    def _close_interval(self, trainer: Trainer, read: list[float] | None) -> None:
        self.collect(trainer, read)
        is_first = not self._intervals
        if self._intervals and self._intervals[0].is_warmup:
            self._intervals.clear()
        seconds, data_seconds = self._watch.lap()
        self._intervals.append(Interval(seconds, data_seconds, self._steps, self._work, is_first))
        self._work = Work()
        self._steps = 0
        while sum(i.steps for i in self._intervals) - self._intervals[0].steps >= self.window:
            self._intervals.popleft()

    def _measured(self, trainer: Trainer) -> dict[str, float]:
        seconds = sum(i.seconds for i in self._intervals)
        work = Work()
        for interval in self._intervals:
            work = work.plus(interval.work)
        values = {}
        if self._finds_tokens:
            values["tokens_per_second"] = work.tokens / seconds
            values["tokens_seen"] = float(self.tokens_seen)
        values |= {
            "step_seconds": seconds / sum(i.steps for i in self._intervals),
            "data_wait_fraction": sum(i.data_seconds for i in self._intervals) / seconds,
        }
        if self.peak is not None and work.flops > 0:
            available = seconds * self.peak * trainer.world_size
            values["mfu"] = work.flops / available
            if work.causal_flops > 0:
                values["mfu_causal"] = work.causal_flops / available
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        return values
