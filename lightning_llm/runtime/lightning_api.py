"""The private names of Lightning that this package needs, each behind a function.

A canary test in ``tests/runtime/test_lightning_api.py`` fails where a release of Lightning renames
one of them.
"""

from __future__ import annotations

import os

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod

# A classmethod that says so where it is called on an instance, as `load_from_checkpoint` does.
on_the_class_only = _restricted_classmethod


def save_newest_state(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Have a ``ModelCheckpoint`` save the current step, unless it just did.

    What it keeps by a metric stays as it is. ``last.ckpt`` becomes the current step in any case: a
    link to the checkpoint of that step, or, where there is none, a checkpoint in place of the link.
    """
    if callback._last_global_step_saved == trainer.global_step:
        return
    candidates = callback._monitor_candidates(trainer)
    keeps_newest = callback.monitor is None and callback.save_top_k != 0
    if keeps_newest:
        callback._save_topk_checkpoint(trainer, candidates)
    if not callback.save_last:
        return
    if not keeps_newest:
        # Saved as such: through a link, a checkpoint chosen by the metric would be overwritten.
        callback._last_checkpoint_saved = ""
        if trainer.is_global_zero and os.path.islink(callback.last_model_path):
            os.unlink(callback.last_model_path)
        trainer.strategy.barrier("save_newest_state")
    callback._save_last_checkpoint(trainer, candidates)


def inside_accumulation_window(trainer: Trainer) -> bool:
    """Whether the micro-batch just trained on is followed by others of the same optimizer step."""
    return bool(trainer.fit_loop._should_accumulate())


def steps_logged(trainer: Trainer) -> int:
    """Return the number under which loggers get the next training step."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def undoes_search(trainer: Trainer) -> bool:
    """Whether the checkpoint being loaded is the one that Lightning's finders go back to.

    `LearningRateFinder` and `BatchSizeFinder` save the start of a run, train for some steps, and
    load it again. That is no resumed run.
    """
    name = os.path.basename(str(trainer.ckpt_path or ""))
    return name.startswith((".lr_find_", ".scale_batch_size_"))
