"""What the command line adds to a run without being asked.

Nothing the run saves is lost or broken, no rank waits for another's garbage collector, and what
the run does and how fast is on the console and in the log.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import (
    GarbageCollection,
    OptimizerSettings,
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
    OptimizerSettings,
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


def missing_logger(config: dict[str, Any]) -> CSVLogger | None:
    """Return the logger that Lightning falls back to without TensorBoard, or None if it does not.

    Lightning says at length that TensorBoard is missing; a recipe that asks for no logger of its
    own has nothing to do about that.
    """
    asks = config.get("logger") not in (None, True) or config.get("barebones")
    if asks or find_spec("tensorboard") or find_spec("tensorboardX"):
        return None
    return CSVLogger(save_dir=config.get("default_root_dir") or Path.cwd())


def without_logger(given: list[Callback]) -> list[Callback]:
    """Leave out what refuses to run where nobody logs, such as under ``--trainer.logger false``."""
    return [callback for callback in given if not isinstance(callback, LearningRateMonitor)]


def silence_advice() -> None:
    """Leave out what other libraries say on each start that is no news of this run."""
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_advertisement not in logger.filters:
        logger.addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(
        ("💡 Tip: For seamless cloud", "TPU available: False")
    )
