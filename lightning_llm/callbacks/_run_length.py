"""How many optimizer steps a run has."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, ``None`` if nothing bounds it.

    `Trainer.estimated_stepping_batches` is not read on purpose: it sets the loaders up before
    their state is restored, and a resumed run then loses its place in the data.
    """
    if trainer.max_steps != -1:
        return trainer.max_steps
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs in (None, -1) or math.isinf(batches):
        return None
    return math.ceil(batches / trainer.accumulate_grad_batches) * epochs
