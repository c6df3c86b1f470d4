"""A callback that treats validation and test alike."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_llm.callbacks._step_again import EvaluationStep


class EvaluationCallback(Callback):
    """Collects something over an evaluation: start, add each batch, finish."""

    def start(self, trainer: Trainer) -> None:
        """An evaluation begins."""
        raise TypeError(f"{type(self).__name__} must define start(trainer)")

    def add(self, trainer: Trainer, pl_module: LightningModule, ran: EvaluationStep) -> None:
        """A step of it ended."""
        raise TypeError(f"{type(self).__name__} must define add(trainer, pl_module, ran)")

    def finish(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        """It ended; names of what is logged begin with ``prefix``, ``"val"`` or ``"test"``."""
        raise TypeError(f"{type(self).__name__} must define finish(trainer, pl_module, prefix)")

    def before(self, pl_module: LightningModule, dataloader_idx: int) -> None:
        """A step of it is about to run."""

    def logged(self, pl_module: LightningModule) -> dict[str, Any]:
        """What the step logged, where `before` set out to note it."""
        return {}

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.before(pl_module, dataloader_idx)

    @override
    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.before(pl_module, dataloader_idx)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer)

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer)

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
        logged = self.logged(pl_module)
        ran = EvaluationStep("validation_step", outputs, batch, batch_idx, dataloader_idx, logged)
        self.add(trainer, pl_module, ran)

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
        logged = self.logged(pl_module)
        ran = EvaluationStep("test_step", outputs, batch, batch_idx, dataloader_idx, logged)
        self.add(trainer, pl_module, ran)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, pl_module, "test")
