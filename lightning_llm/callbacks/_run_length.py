"""How many optimizer steps a run has."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, ``None`` if nothing bounds it.

    It is whichever of ``max_steps`` (to which a module's ``max_tokens`` is converted) and
    ``max_epochs`` is reached first, with the accumulation that each epoch is going to have.
    ``max_time`` is no number of steps and plays no part.

    `Trainer.estimated_stepping_batches` is not read on purpose: it sets the loaders up before
    their state is restored, and a resumed run then loses its place in the data.
    """
    bounds = [] if trainer.max_steps == -1 else [trainer.max_steps]
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs not in (None, -1) and not math.isinf(batches):
        bounds.append(_steps_of_epochs(trainer, int(batches), epochs))
    return min(bounds, default=None)


def steps_for_batches(trainer: Trainer, wanted: int) -> int:
    """Optimizer steps after which each rank has taken ``wanted`` micro-batches, or just more."""
    batches = trainer.num_training_batches
    steps, epoch = 0, 0
    if not math.isinf(batches):
        borders = _changes_of_accumulation(trainer)
        while wanted > batches:
            following = min((border for border in borders if border > epoch), default=None)
            epochs = (wanted - 1) // int(batches)  # whole ones before the last
            if following is not None:
                epochs = min(epochs, following - epoch)
            steps += epochs * math.ceil(batches / accumulation(trainer, epoch))
            wanted -= epochs * int(batches)
            epoch += epochs
    return steps + math.ceil(wanted / accumulation(trainer, epoch))


def accumulation(trainer: Trainer, epoch: int) -> int:
    """Micro-batches of an optimizer step in an epoch counted from 0."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return int(callback.get_accumulate_grad_batches(epoch))
    return int(trainer.accumulate_grad_batches)


def changes_accumulation(trainer: Trainer) -> bool:
    """Whether some epochs have other numbers of micro-batches in a step than the first."""
    return len(_changes_of_accumulation(trainer)) > 1


def _changes_of_accumulation(trainer: Trainer) -> list[int]:
    """The epochs that begin with another accumulation, in order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return sorted(callback.scheduling)
    return []


def _steps_of_epochs(trainer: Trainer, batches: int, epochs: int) -> int:
    borders = [border for border in _changes_of_accumulation(trainer) if 0 < border < epochs]
    steps = 0
    for first, end in zip([0, *borders], [*borders, epochs]):
        # The last window of an epoch may be short.
        steps += (end - first) * math.ceil(batches / accumulation(trainer, first))
    return steps
