"""Training speed: tokens per second, model FLOPs utilisation, data wait, memory."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_llm.batches import describe
from lightning_llm.callbacks._flops import FlopsPerToken
from lightning_llm.callbacks._log_point import LogPoint
from lightning_llm.callbacks._speed_meter import SpeedMeter
from lightning_llm.errors import InvalidValueError


class SpeedMonitor(Callback):
    """Logs how fast training goes, at the trainer's log points and at no cost between them.

    Logged, over all ranks and the last ``window`` optimizer steps:

    - ``tokens_per_second``: non-padding tokens per second, of batches with ``input_ids`` or labels
      (B, T), else of the first int32 or int64 tensor (B, T) in the batch; where there is none,
      one warning says so and neither this nor ``tokens_seen`` is logged. Time in validation and
      checkpointing is left out, and so is the first step, once there is another, for it includes
      compilation.
    - ``tokens_seen``: since the start of the run, kept in checkpoints; tokens count once their
      optimizer step was taken.
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
            raise InvalidValueError(f"window={window} must be at least 1 optimizer step")
        if peak_flops is not None and peak_flops <= 0:
            raise InvalidValueError(
                f"peak_flops={peak_flops} must be positive: FLOP/s of one device"
            )
        self.window = window
        self._warned = False
        self._meter = SpeedMeter(window, flops_per_token, peak_flops)

    @property
    def tokens_seen(self) -> int:
        """Non-padding tokens since the start of the run, over all ranks, up to a log point."""
        return self._meter.tokens_seen

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meter.start(trainer, pl_module)
        self._warned = False
        if self._meter.token_flops is None:
            rank_zero_info(
                "SpeedMonitor logs no MFU: neither the module nor its model has "
                "flops_per_token(seq_len), and flops_per_token= is not given."
            )
        elif self._meter.peak is None and trainer.strategy.root_device.type != "cpu":
            # No peak of a CPU is known; a line on every run there would be noise.
            rank_zero_info(
                f"SpeedMonitor logs no MFU: the peak of {_device_name(trainer)} at precision "
                f"{trainer.precision} is not known; give it as peak_flops=."
            )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        LogPoint.of(trainer).batch_started(trainer)
        self._meter.batch_started(batch)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        values = self._meter.batch_ended(trainer, batch, outputs)
        if values is None:
            return
        LogPoint.of(trainer).log(pl_module, values)
        if "tokens_per_second" in values:
            # Not by prog_bar=True, which reads every such tensor again in every batch.
            trainer.progress_bar_metrics["tokens_per_second"] = values["tokens_per_second"]
        elif not self._warned:
            self._warned = True
            rank_zero_warn(
                f"SpeedMonitor finds no tokens to count in the batches ({describe(batch)}) and "
                "logs neither tokens_seen nor tokens_per_second. It counts 'input_ids' or labels "
                "(B, T) of a mapping, or else the first int32 or int64 tensor of shape (B, T)."
            )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meter.pause(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._meter.pause(trainer)
        # Lightning has asked for the state already; tokens since the last log point are not in it.
        self._meter.collect(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._meter.crashed = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self._meter.tokens_seen}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._meter.tokens_seen = state_dict["tokens_seen"]


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
