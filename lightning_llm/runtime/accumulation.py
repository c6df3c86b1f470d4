"""How many micro-batches make an optimizer step in the epoch under way."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def follow_accumulation_schedule(trainer: Trainer, caller: Callback | None = None) -> None:
    """Set the factor that a ``GradientAccumulationScheduler`` plans for this epoch.

    Lightning's callback sets it where an epoch begins: a run that is resumed inside one would go on
    with the factor 1 until the next.

    Args:
        trainer: In ``on_train_start``, where the callback refuses a factor that it did not set.
        caller: Of the callbacks, the one that calls; those after it have not looked yet.
    """
    for callback in getattr(trainer, "callbacks", ()):
        if callback is caller:
            return
        if isinstance(callback, GradientAccumulationScheduler):
            planned = callback.get_accumulate_grad_batches(trainer.current_epoch)
            trainer.accumulate_grad_batches = planned
