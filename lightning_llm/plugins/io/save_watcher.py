"""`SaveWatcher`: a failed asynchronous save stops the run before its next step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from typing_extensions import override


class SaveWatcher(L.Callback):
    """Raise the error of a save in a thread before the next micro-batch is trained on.

    For `AtomicCheckpointIO(asynchronous=True)`; a checkpoint plugin without ``raise_failure`` is
    left alone. Looks at one attribute per micro-batch.
    """

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Raise what the saving thread met, if anything."""
        raise_failure = getattr(trainer.strategy.checkpoint_io, "raise_failure", None)
        if raise_failure is not None:
            raise_failure()
