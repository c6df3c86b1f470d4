"""Python's garbage collector on a schedule that all ranks share."""

from __future__ import annotations

import gc
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_llm.errors import InvalidValueError


class GarbageCollection(Callback):
    """Collects every ``every_n_steps`` optimizer steps instead of whenever Python sees fit.

    A full collection walks every object of the process, tens of milliseconds in a large program.
    Left to itself it strikes each rank at another step, and all ranks wait for each. Here what
    exists at the start of training is collected once and frozen, and afterwards all ranks collect
    the young generations at the same steps. The collector is restored when training ends, also by
    an exception.

    Args:
        every_n_steps: Optimizer steps between collections.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise InvalidValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self._was_enabled: bool | None = None  # None while the collector is not ours
        self._collected_at = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._was_enabled = gc.isenabled()
        self._collected_at = trainer.global_step
        gc.collect()
        gc.freeze()
        gc.disable()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step - self._collected_at >= self.every_n_steps:
            self._collected_at = trainer.global_step
            gc.collect(1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._was_enabled is None:
            return
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()
        self._was_enabled = None
