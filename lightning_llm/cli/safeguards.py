"""What the command line adds to a run without being asked.

Nothing the run saves is lost or broken, no rank waits for another's garbage collector, and what
the run does and how fast is on the console and in the log.
"""

from __future__ import annotations

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lightning_llm.callbacks import (
    GarbageCollection,
    Preemption,
    RandomState,
    SaveAtEnd,
    SpeedMonitor,
    StallGuard,
    StartupBanner,
    TokenProgressBar,
)
from lightning_llm.plugins import AtomicCheckpointIO, SaveWatcher

DEFAULT_CALLBACKS: tuple[type[Callback], ...] = (
    SaveWatcher,
    RandomState,
    Preemption,
    StallGuard,
    SaveAtEnd,
    GarbageCollection,
    SpeedMonitor,
    StartupBanner,
)


def missing_callbacks(given: list[Callback]) -> list[Callback]:
    """Return one of each that training needs and the recipe does not name itself."""
    return [kind() for kind in DEFAULT_CALLBACKS if not any(isinstance(c, kind) for c in given)]


def missing_progress_bar(given: list[Callback], enabled: bool | None) -> list[Callback]:
    """Return a `TokenProgressBar`, unless the recipe names a bar or wants none."""
    if enabled is False or any(isinstance(callback, ProgressBar) for callback in given):
        return []
    return [TokenProgressBar()]


def save_atomically(trainer: Trainer) -> None:
    """Use `AtomicCheckpointIO` where the recipe, or the strategy, chose nothing else."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
