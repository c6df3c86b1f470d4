"""Training speed: tokens per second, model FLOPs utilisation, data wait, memory."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_llm.callbacks._flops import FlopsPerToken, TokenFlops, find_peak, find_token_flops
from lightning_llm.callbacks._stopwatch import Stopwatch
from lightning_llm.callbacks._token_count import TokenCount


class _Work(NamedTuple):
    """What all ranks have done together; FLOPs are 0 where they are not known."""

    tokens: float = 0.0
    flops: float = 0.0
    causal_flops: float = 0.0

    def plus(self, other: _Work) -> _Work:
        return _Work(*(a + b for a, b in zip(self, other)))


class _Interval(NamedTuple):
    """What happened between two readings of the clock."""

    seconds: float
    data_seconds: float
    steps: int
    work: _Work
    is_warmup: bool


class SpeedMonitor(Callback):
    """Logs how fast training goes, at the trainer's log points and at no cost between them.

    Logged, over all ranks and the last ``window`` optimizer steps:

    - ``tokens_per_second``: non-padding tokens per second. Time in validation and checkpointing
      is left out, and so is the first step, once there is another, for it includes compilation.
    - ``tokens_seen``: since the start of the run, kept in checkpoints.
    - ``step_seconds``: per optimizer step, all its micro-batches included.
    - ``data_wait_fraction``: share of the time between the end of a batch and the start of the
      next, as seen by the host: loading, transfer, and what other callbacks and loggers do there.
    - ``mfu``: ``tokens_per_second * flops_per_token(seq_len) / (devices * peak_flops)``, with
      attention counted in full (k = 12 in ``6 * N + k * layers * dim * seq_len``), the number
      most trainers print. ``mfu_causal`` counts the half that a causal kernel has to do (k = 6).
      Recomputation is never counted. Both are in [0, 1], and absent where FLOPs or peak are not
      known.
    - ``peak_memory_gib``: most memory allocated on this rank's CUDA device.

    Args:
        window: Optimizer steps to average over, rounded up to whole log intervals.
        flops_per_token: FLOPs per trained token, forward and backward: a number or a function of
            ``seq_len`` (and ``causal``). By default the method of that name of the module or of
            its ``model``.
        peak_flops: Peak FLOP/s of one device, by default looked up by its name.
    """

    def __init__(
        self,
        window: int = 50,
        *,
        flops_per_token: FlopsPerToken | None = None,
        peak_flops: float | None = None,
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window={window} must be at least 1 optimizer step")
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"peak_flops={peak_flops} must be positive: FLOP/s of one device")
        self.window = window
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.tokens_seen = 0
        self._token_flops: TokenFlops | None = None
        self._peak: float | None = None
        self._crashed = False
        self._global_step = 0
        self._count = TokenCount()
        self._begin()

    def _begin(self) -> None:
        self._count.clear()
        self._watch = Stopwatch()
        self._intervals: deque[_Interval] = deque()
        self._work = _Work()  # of the interval that is not closed yet
        self._steps = 0
        self._is_warm = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._token_flops = find_token_flops(self.flops_per_token, pl_module)
        self._peak = self.peak_flops or find_peak(trainer)
        if self._token_flops is None:
            rank_zero_info(
                "SpeedMonitor logs no MFU: neither the module nor its model has "
                "flops_per_token(seq_len), and flops_per_token= is not given."
            )
        elif self._peak is None:
            rank_zero_info(
                f"SpeedMonitor logs no MFU: the peak of {_device_name(trainer)} at precision "
                f"{trainer.precision} is not known; give it as peak_flops=."
            )
        self._begin()
        self._crashed = False
        self._global_step = trainer.global_step

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._watch.batch_started()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._count.add(batch)
        before, self._global_step = self._global_step, trainer.global_step
        if self._global_step > before:
            self._steps += 1
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            is_log_point = every > 0 and self._global_step // every > before // every
            if is_log_point or not self._is_warm:
                self._close_interval(trainer)
            if is_log_point:
                self._log(trainer, pl_module)
        self._watch.batch_ended()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._pause(trainer)
        # Lightning has asked for the state already; tokens since the last log point are not in it.
        self._collect(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._crashed = True  # other ranks may be gone: a checkpoint must not wait for them

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens_seen = state_dict["tokens_seen"]

    def _pause(self, trainer: Trainer) -> None:
        """Stop the clock until the next training batch, once the queued work is done."""
        if self._watch.is_running:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize(trainer.strategy.root_device)
            self._watch.pause()

    def _collect(self, trainer: Trainer) -> None:
        """Add the tokens counted on the device to the open interval; waits for the device."""
        tokens = flops = causal_flops = 0.0
        for seq_len, count in self._count.drain().items():
            tokens += count
            if self._token_flops is not None:
                full, causal = self._token_flops.at(seq_len)
                flops += count * full
                causal_flops += count * (causal or 0.0)
        work = self._over_ranks(trainer, _Work(tokens, flops, causal_flops))
        self.tokens_seen += round(work.tokens)
        self._work = self._work.plus(work)

    def _over_ranks(self, trainer: Trainer, work: _Work) -> _Work:
        """Summed over the ranks that hold different data; tensor-parallel ranks hold the same."""
        if trainer.world_size == 1:
            return work
        sampler = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        replicas = sampler.get("num_replicas", trainer.world_size)
        if self._crashed:  # as if all ranks had seen as much as this one
            return _Work(*(value * replicas for value in work))
        total = torch.tensor(work, dtype=torch.float64, device=trainer.strategy.root_device)
        total = trainer.strategy.reduce(total, reduce_op="sum") * (replicas / trainer.world_size)
        return _Work(*total.tolist())

    def _close_interval(self, trainer: Trainer) -> None:
        self._collect(trainer)  # before the clock is read: the work is done then
        if self._intervals and self._intervals[0].is_warmup:
            self._intervals.clear()
        seconds, data_seconds = self._watch.lap()
        self._intervals.append(
            _Interval(seconds, data_seconds, self._steps, self._work, not self._is_warm)
        )
        self._is_warm = True
        self._work = _Work()
        self._steps = 0
        while sum(i.steps for i in self._intervals) - self._intervals[0].steps >= self.window:
            self._intervals.popleft()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = sum(i.seconds for i in self._intervals)
        work = _Work()
        for interval in self._intervals:
            work = work.plus(interval.work)
        speed = work.tokens / seconds
        values = {
            "tokens_per_second": speed,
            "tokens_seen": float(self.tokens_seen),
            "step_seconds": seconds / sum(i.steps for i in self._intervals),
            "data_wait_fraction": sum(i.data_seconds for i in self._intervals) / seconds,
        }
        if self._peak is not None and work.flops > 0:
            available = seconds * self._peak * trainer.world_size
            values["mfu"] = work.flops / available
            if work.causal_flops > 0:
                values["mfu_causal"] = work.causal_flops / available
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        for name, value in values.items():  # tensors on the host: reading them waits for nothing
            tensor = torch.tensor(value, dtype=torch.float64)
            pl_module.log(name, tensor, on_step=True, on_epoch=False)
        # Not by prog_bar=True, which reads every such tensor again in every batch.
        trainer.progress_bar_metrics["tokens_per_second"] = speed


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
