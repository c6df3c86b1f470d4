"""What the command line adds to a run without being asked: nothing it saves is lost or broken."""

from __future__ import annotations

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer

from lightning_llm.callbacks import Preemption, RandomState, SaveAtEnd
from lightning_llm.plugins import AtomicCheckpointIO, SaveWatcher

DEFAULT_CALLBACKS: tuple[type[Callback], ...] = (
    SaveWatcher,
    RandomState,
    Preemption,
    SaveAtEnd,
)


def missing_callbacks(given: list[Callback]) -> list[Callback]:
    """Return one of each safeguard that the recipe does not name itself."""
    return [kind() for kind in DEFAULT_CALLBACKS if not any(isinstance(c, kind) for c in given)]


def save_atomically(trainer: Trainer) -> None:
    """Use `AtomicCheckpointIO` where the recipe, or the strategy, chose nothing else."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
