"""The last step of a run is saved, wherever validation fell."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override


class SaveAtEnd(Callback):
    """Makes every ``ModelCheckpoint`` that keeps the newest state save the last step too.

    Lightning saves when validation ends or every so many steps; a run of 500 steps that validates
    every 200 would keep step 400. Checkpoints chosen by a metric are left alone: the last step has
    no value of it.
    """

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.monitor is not None:
                continue
            saved = callback._last_global_step_saved == trainer.global_step
            if not saved and callback.save_top_k != 0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                callback._save_topk_checkpoint(trainer, callback._monitor_candidates(trainer))
