"""The last step of a run is saved, wherever validation fell."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_llm.runtime.lightning_api import save_newest_state


class SaveAtEnd(Callback):
    """Makes every ``ModelCheckpoint`` that keeps the newest state save the last step too.

    Lightning saves when validation ends or every so many steps; a run of 500 steps that validates
    every 200 would keep step 400. Checkpoints chosen by a metric are left alone, since the last
    step has no value of it; their ``last.ckpt`` (``save_last``) is the last step all the same.
    """

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                save_newest_state(callback, trainer)
