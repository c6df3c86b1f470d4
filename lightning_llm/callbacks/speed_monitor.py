"""Training speed: tokens per second, model FLOPs utilisation, data wait, memory."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_llm.callbacks._flops import (
    FlopsPerToken,
    TokenFlops,
    find_peak,
    find_token_flops,
)
from lightning_llm.callbacks._token_count import TokenCount


class _Interval(NamedTuple):
    """What happened between two readings of the clock; tokens and FLOPs over all ranks."""

    seconds: float
    data_seconds: float
    steps: int
    tokens: float
    flops: float
    causal_flops: float
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
        self.window = window
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.tokens_seen = 0
        self._token_flops: TokenFlops | None = None
        self._peak: float | None = None
        self._count = TokenCount()
        self._intervals: deque[_Interval] = deque()
        self._started_at: float | None = None  # None while the clock stands still
        self._batch_ended_at: float | None = None
        self._seconds = self._data_seconds = 0.0
        self._steps = 0
        self._global_step = 0
        self._warm = False

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
                f"SpeedMonitor logs no MFU: the peak of {trainer.strategy.root_device} is not "
                "known; give it as peak_flops=."
            )
        self._intervals.clear()
        self._started_at = self._batch_ended_at = None
        self._seconds = self._data_seconds = 0.0
        self._steps = 0
        self._global_step = trainer.global_step
        self._warm = False

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._started_at is None:
            self._started_at = now
        elif self._batch_ended_at is not None:
            self._data_seconds += now - self._batch_ended_at

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
            every = trainer.log_every_n_steps
            is_log_point = every > 0 and self._global_step // every > before // every
            if is_log_point or not self._warm:
                self._close_interval(trainer)
                self._warm = True
            if is_log_point:
                self._log(trainer, pl_module)
        self._batch_ended_at = time.perf_counter()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._pause(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens_seen = state_dict["tokens_seen"]

    def _pause(self, trainer: Trainer) -> None:
        """Stop the clock until the next training batch, once the queued work is done."""
        if self._started_at is None:
            return
        _synchronize(trainer.strategy.root_device)
        self._seconds += time.perf_counter() - self._started_at
        self._started_at = self._batch_ended_at = None

    def _close_interval(self, trainer: Trainer) -> None:
        counts = self._count.drain()  # waits for the device
        now = time.perf_counter()
        if self._started_at is not None:
            self._seconds += now - self._started_at
            self._started_at = now
        tokens = flops = causal_flops = 0.0
        for seq_len, count in counts.items():
            tokens += count
            if self._token_flops is not None:
                full, causal = self._token_flops.at(seq_len)
                flops += count * full
                causal_flops += count * (causal or 0.0)
        tokens, flops, causal_flops = _over_ranks(trainer, [tokens, flops, causal_flops])
        self.tokens_seen += round(tokens)
        if self._intervals and self._intervals[0].is_warmup:
            self._intervals.clear()
        self._intervals.append(
            _Interval(
                self._seconds,
                self._data_seconds,
                self._steps,
                tokens,
                flops,
                causal_flops,
                is_warmup=not self._warm,
            )
        )
        while sum(i.steps for i in self._intervals) - self._intervals[0].steps >= self.window:
            self._intervals.popleft()
        self._seconds = self._data_seconds = 0.0
        self._steps = 0

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = sum(i.seconds for i in self._intervals)
        steps = sum(i.steps for i in self._intervals)
        values = {
            "tokens_seen": float(self.tokens_seen),
            "step_seconds": seconds / steps,
            "data_wait_fraction": sum(i.data_seconds for i in self._intervals) / seconds,
        }
        if self._token_flops is not None and self._peak is not None:
            available = seconds * self._peak * trainer.world_size
            values["mfu"] = sum(i.flops for i in self._intervals) / available
            causal = sum(i.causal_flops for i in self._intervals)
            if causal > 0:
                values["mfu_causal"] = causal / available
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        # Tensors on the host: the progress bar reads them again and again.
        for name, value in values.items():
            pl_module.log(name, _host(value), on_step=True, on_epoch=False)
        speed = sum(i.tokens for i in self._intervals) / seconds
        pl_module.log(
            "tokens_per_second", _host(speed), on_step=True, on_epoch=False, prog_bar=True
        )


def _host(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _synchronize(device: torch.device) -> None:
    if device.type in ("cuda", "mps", "xpu"):
        torch.accelerator.synchronize(device)


def _over_ranks(trainer: Trainer, values: list[float]) -> list[float]:
    """Sums over the ranks that hold different data; tensor-parallel ranks hold the same."""
    if trainer.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    total = trainer.strategy.reduce(total, reduce_op="sum")
    sampler = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    replicas = sampler.get("num_replicas", trainer.world_size)
    return [value * replicas / trainer.world_size for value in total.tolist()]
