"""`SaveWatcher`: a save that failed, or that nobody could load, stops the run in time."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from typing_extensions import override

from lightning_llm.plugins.io.atomic import AtomicCheckpointIO
from lightning_llm.plugins.io.plain_data import check_plain_data
from lightning_llm.plugins.io.sealed_file import local_path


class SaveWatcher(L.Callback):
    """Tell early what is wrong with the checkpoints of a run.

    Before training: hyperparameters that could be saved but not loaded again, and a ``dirpath``
    such as ``s3://…``, to which `AtomicCheckpointIO` cannot write. During training:
    the error of a save in a thread of `AtomicCheckpointIO(asynchronous=True)`, before the next
    micro-batch; a checkpoint plugin without ``raise_failure`` is left alone. Costs a look at one
    attribute per micro-batch.
    """

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the hyperparameters.

        Raises:
            TypeError: Some are no plain data; they are named.
            ValueError: Checkpoints are to go to an address.
        """
        if isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            for callback in trainer.checkpoint_callbacks:
                local_path(getattr(callback, "dirpath", None) or "")
        check_plain_data(pl_module.hparams, f"the hyperparameters of {type(pl_module).__name__}")
        data = getattr(trainer, "datamodule", None)
        if data is not None:
            check_plain_data(data.hparams, f"the hyperparameters of {type(data).__name__}")

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Raise what the saving thread met, if anything."""
        raise_failure = getattr(trainer.strategy.checkpoint_io, "raise_failure", None)
        if raise_failure is not None:
            raise_failure()
