"""Taking the repetition of a DistributedSampler out of the batch it ends."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_llm.batches import field
from lightning_llm.callbacks._likelihood import has_sums, logits_of
from lightning_llm.callbacks._rows import first_rows
from lightning_llm.callbacks._sampler_padding import PaddedBatch
from lightning_llm.callbacks._step_again import EvaluationStep, can_step_again, step_again


def without_repetition(
    trainer: Trainer,
    pl_module: LightningModule,
    ran: EvaluationStep,
    padded: PaddedBatch,
    is_one_of_many: bool,
) -> EvaluationStep | None:
    """The step on the samples that are no repetition; ``None`` if there are none.

    Logits are cut. Sums cannot be, so the step runs again on the batch without the repeated row:
    on all ranks, since a sharded model communicates, though some have nothing to take out.

    Args:
        trainer: The trainer.
        pl_module: The module.
        ran: The step on the whole batch.
        padded: How many rows the batch has and how many to keep.
        is_one_of_many: Whether there are several dataloaders, and steps take ``dataloader_idx``.
    """
    size, kept = padded
    if size == 1:
        return ran if kept else None
    batch = first_rows(ran.batch, size, kept)
    if field(ran.outputs, "without_repetition") and batch is not None:
        return ran._replace(batch=batch)  # the module has left it out itself
    logits = logits_of(ran.outputs)
    is_from_logits = not has_sums(ran.outputs) and field(ran.outputs, "num_bytes") is None
    if batch is not None and is_from_logits and logits is not None:
        cut_logits = first_rows(logits, size, kept)
        if cut_logits is not None:
            return ran._replace(outputs={"logits": cut_logits}, batch=batch)
    if batch is None or not can_step_again(pl_module, ran.name):
        rank_zero_warn(
            f"The sampler behind {ran.name} repeats samples so that all ranks get equally many, "
            "and its last batch has no rows to leave them out of: they count twice. Use a sampler "
            "without repetition, or a dataset size that the number of ranks divides."
        )
        return ran
    again = step_again(trainer, pl_module, ran._replace(batch=batch), is_one_of_many)
    return ran if kept == size else again
