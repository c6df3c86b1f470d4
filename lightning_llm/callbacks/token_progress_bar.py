"""A progress bar for language models."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_llm.callbacks._console import ConsoleLine, clock_time, short_number
from lightning_llm.callbacks._lazy_sum import LazySum
from lightning_llm.callbacks._log_point import LogPoint
from lightning_llm.callbacks._run_length import total_steps
from lightning_llm.callbacks._speed_meter import SpeedMeter
from lightning_llm.callbacks.speed_monitor import SpeedMonitor

_SECONDS_BETWEEN_REFRESHES = 0.2  # in evaluation, on a terminal
# Where each log point is a line of its own: a day's log stays readable.
_LINES_AT_ONCE = 200
_SECONDS_BETWEEN_LINES = 10.0  # after those


class TokenProgressBar(ProgressBar):
    """Step, tokens, tokens per second, loss, perplexity and time left, in one line.

    ``step 150/600  25%  614k tokens  38.2k tokens/s  loss 5.213  perplexity 183.6  2:31 left``

    It changes at the trainer's log points, with what is read from the device there anyway, and
    costs nothing between them. On a terminal the line is written over; in a file, a pipe or a
    notebook each log point is a line of its own; after 200 lines one in ten seconds, and the last.
    Validation has one line, with its results.

    Works with any LightningModule. The loss is the ``train_loss`` that was logged by this
    package's modules, otherwise the mean of the losses since the last log point; the perplexity
    is its exponential. Speed and tokens are those of `SpeedMonitor`, where there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._line = ConsoleLine()
        self._forget()

    def _forget(self) -> None:
        self._own_meter: SpeedMeter | None = None
        self._losses: LazySum | None = None  # None where the module logs its own
        self._num_losses = 0
        self._step = self._first_step = 0
        self._total: int | None = None
        self._own: dict[str, float] = {}  # what was measured here at the last log point
        self._is_due = False
        self._began = self._refreshed = 0.0
        self._num_lines = 0
        self._last_line = 0.0

    # ------------------------------------------------------------------ what Lightning asks for

    @property
    def is_enabled(self) -> bool:
        """Whether it shows anything; only rank zero does."""
        return self._is_enabled

    @override
    def disable(self) -> None:
        """Show nothing from now on."""
        self._is_enabled = False

    @override
    def enable(self) -> None:
        """Show again."""
        self._is_enabled = True

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write whole lines without breaking the bar."""
        if self._is_enabled:
            self._line.write(kwargs.get("sep", " ").join(map(str, args)))

    # ------------------------------------------------------------------ training

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()
        self._step = self._first_step = trainer.global_step
        self._losses = LazySum()
        LogPoint.of(trainer).join(self, self._loss_sum)
        if not any(isinstance(callback, SpeedMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            self._own_meter = SpeedMeter(window=50)
            self._own_meter.start(trainer, pl_module)
        self._began = time.monotonic()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due:
            self._refresh(trainer)
        if self._own_meter is not None:
            self._own_meter.batch_started(batch)

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if self._losses is not None:
            self._losses.add(loss.detach())
            self._num_losses += 1

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._own_meter is not None:
            self._own.update(self._own_meter.batch_ended(trainer, batch, outputs) or {})
        before, self._step = self._step, trainer.global_step
        if not LogPoint.lies_between(trainer, before, self._step):
            return
        losses = LogPoint.of(trainer).read(self, self._step, batch, outputs)
        if self._losses is not None and losses:
            # Lightning has divided each by the number of micro-batches.
            self._own["loss"] = losses[0] * trainer.accumulate_grad_batches / self._num_losses
            self._losses.clear()
            self._num_losses = 0
        self._is_due = True  # shown once all have logged what belongs to this step

    def _loss_sum(self) -> Tensor | None:
        return None if self._losses is None else self._losses.total()

    def _refresh(self, trainer: Trainer) -> None:
        self._is_due = False
        latest = LogPoint.of(trainer).latest
        if "train_loss" in latest:
            self._losses = None
        self._total = total_steps(trainer)
        if not trainer.lightning_module.automatic_optimization:
            self._total = None if trainer.max_steps == -1 else trainer.max_steps
        if self._is_enabled and self._has_room():
            known = self._own | latest
            if "train_loss" in latest:
                known["loss"] = latest["train_loss"]
            line = _training_line(self._step, self._total, self._done(trainer), trainer, known)
            self._line.show(line)

    def _done(self, trainer: Trainer) -> float | None:
        """The share of the run that is over, ``None`` if nothing bounds it.

        In manual optimization a batch may take any number of optimizer steps, and only
        ``max_steps`` counts them: there the batches of the epochs tell how far the run has come.
        """
        shares = [] if not self._total else [self._step / self._total]
        if not trainer.lightning_module.automatic_optimization:
            shares = [] if trainer.max_steps == -1 else [self._step / trainer.max_steps]
            batches, epochs = trainer.num_training_batches, trainer.max_epochs
            if epochs not in (None, -1) and not math.isinf(batches) and batches:
                progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
                shares.append(progress.processed / (batches * epochs))
        return max(shares, default=None)

    def _has_room(self) -> bool:
        """Whether the line of this log point is shown."""
        now = time.monotonic()
        if self._line.is_terminal or self._num_lines < _LINES_AT_ONCE or self._step == self._total:
            self._num_lines += 1
        elif now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_due:
            self._refresh(trainer)
        self._line.end()  # Lightning may have something to say here

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line.end()
        if self._is_enabled and trainer.global_step > self._first_step:
            steps = trainer.global_step - self._first_step
            self._line.write(f"{steps:,} steps in {clock_time(time.monotonic() - self._began)}")

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._line.end()
        if self._own_meter is not None:
            self._own_meter.crashed = True

    # ------------------------------------------------------------------ evaluation

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._own_meter is not None and not trainer.sanity_checking:
            self._own_meter.pause(trainer)
        if self._is_due:
            self._refresh(trainer)
        self._line.end()
        self._validation_began = time.monotonic()

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self.has_dataloader_changed(dataloader_idx)
            self._count("validation", batch_idx, self.total_val_batches_current_dataloader)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self._is_enabled:
            return
        if trainer.state.fn != TrainerFn.FITTING:  # Lightning prints the results
            self._line.end()
            return
        found = [
            f"{name} {_number(float(value))}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_")
        ]
        seconds = clock_time(time.monotonic() - self._validation_began)
        results = "  ".join(["", *found])
        self._line.show(f"validation at step {trainer.global_step:,}{results}  took {seconds}")
        self._line.end()

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.has_dataloader_changed(dataloader_idx)
        self._count("test", batch_idx, self.total_test_batches_current_dataloader)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line.end()

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.has_dataloader_changed(dataloader_idx)
        self._count("prediction", batch_idx, self.total_predict_batches_current_dataloader)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line.end()

    def _count(self, what: str, batch_idx: int, total: float) -> None:
        """Show how far an evaluation has come, on a terminal and a few times a second."""
        now = time.monotonic()
        is_last = batch_idx + 1 >= total
        if not self._is_enabled or not self._line.is_terminal:
            return
        if is_last or now - self._refreshed >= _SECONDS_BETWEEN_REFRESHES:
            self._refreshed = now
            of = "" if math.isinf(total) else f"/{total:.0f}"
            self._line.show(f"{what}: batch {batch_idx + 1}{of}")


def _training_line(
    step: int, total: int | None, done: float | None, trainer: Trainer, known: dict[str, float]
) -> str:
    parts = [f"step {step:,}" + ("" if total is None else f"/{total:,}")]
    if done is not None:
        parts.append(f"{math.floor(100 * min(done, 1.0) + 1e-9)}%")
    if trainer.current_epoch:
        parts.append(f"epoch {trainer.current_epoch + 1}")
    if known.get("tokens_seen"):
        parts.append(f"{short_number(known['tokens_seen'])} tokens")
        parts.append(f"{short_number(known['tokens_per_second'])} tokens/s")
    loss = known.get("loss")
    if loss is not None:
        parts.append(f"loss {_number(loss)}")
    if loss is not None and loss < 700:  # exp of more is no float
        parts.append(f"perplexity {_number(math.exp(loss))}")
    if done and "step_seconds" in known:
        seconds = step * (1 / min(done, 1.0) - 1) * known["step_seconds"]
        if trainer.lightning_module.automatic_optimization:
            parts.append(f"{clock_time(seconds)} left")
    return "  ".join(parts)


def _number(value: float) -> str:
    """Four digits, and more only in front of the point."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
