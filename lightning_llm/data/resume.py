"""Put Lightning's counters and the loader back on one optimizer-step boundary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_llm.data.loader import TokenLoader


def align_with_trainer(trainer: Trainer, loader: TokenLoader, state: dict[str, Any]) -> None:
    """Place a training loader, and the trainer's count of batches, after what was trained on.

    The loader's own count is not enough, for three reasons. A run that died inside a step had been
    handed a batch it never finished, and one that died between two micro-batches of an
    accumulation window lost the gradients of that window: both are taken again. A run that reached
    ``max_steps`` in the middle of an epoch goes on in it, where Lightning counts it as over. And
    with another number of ranks, micro-batch size or accumulation, Lightning's count of batches in
    the epoch means other samples than before.

    Args:
        trainer: Its loops are restored from the checkpoint.
        loader: Its epoch is restored.
        state: As saved by `TokenLoader.state_dict`.

    Raises:
        ValueError: The place falls inside an optimizer step of the present global batch size.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    count: Any = progress.current
    if progress.is_last_batch and count.processed >= count.ready:
        step = _last_step(trainer, len(loader))
        _close_epoch(trainer, state["epoch"])
    else:
        samples = min(state["samples"], count.processed * state["samples_per_step"])
        samples -= samples % state["samples_per_update"]
        if samples % loader.samples_per_update:
            raise InvalidValueError(
                f"cannot continue after {samples} samples of the epoch: the global batch size "
                f"(micro_batch_size * ranks * accumulate_grad_batches) was "
                f"{state['samples_per_update']} and is now {loader.samples_per_update}, which "
                "does not divide them. Keep the global batch size, or choose one that does."
            )
        step = loader.step_at(samples)
        _reopen_epoch(trainer, state["epoch"])
    # A checkpoint taken in `on_train_batch_end` has one batch processed but not yet completed.
    unfinished = count.processed - count.completed
    count.ready = count.started = count.processed = step
    count.completed = step - unfinished
    loader.seek(step)


def _reopen_epoch(trainer: Trainer, epoch: int) -> None:
    """Undo that Lightning counts an epoch as over when the run stopped in it."""
    progress: Any = trainer.fit_loop.epoch_progress
    if progress.current.processed > epoch:
        for count in (progress.total, progress.current):
            count.processed = count.completed = count.started - 1


def _close_epoch(trainer: Trainer, epoch: int) -> None:
    """Undo that Lightning takes a run bounded by ``max_steps`` for one that broke off in an epoch.

    It would train one batch of the next epoch and end it.
    """
    progress: Any = trainer.fit_loop.epoch_progress
    if progress.current.processed > epoch:
        trainer.fit_loop._restarting = False  # the public setter knows better when max_steps is set
        trainer.fit_loop.epoch_loop.restarting = False


def _last_step(trainer: Trainer, length: int) -> int:
    """Return how many batches the trainer takes in an epoch."""
    limit = trainer.limit_train_batches
    return min(length, limit) if isinstance(limit, int) else int(length * limit)
