"""Logging a value of a whole evaluation, under the dataloader it belongs to."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer


def log_evaluation_value(
    trainer: Trainer,
    pl_module: LightningModule,
    name: str,
    value: float,
    dataloader_idx: int | None,
    *,
    prog_bar: bool = False,
) -> None:
    """Log ``value``, which all ranks agree on, like ``self.log`` would have; all ranks call it.

    Args:
        trainer: The trainer.
        pl_module: The module.
        name: Without the suffix of the dataloader.
        value: A host number.
        dataloader_idx: Which of several dataloaders; ``None`` if there is one.
        prog_bar: Show it in the progress bar too (with one dataloader).
    """
    tensor = torch.tensor(value, dtype=torch.float64)
    if dataloader_idx is None:
        if trainer.world_size > 1:  # the ranks agree already; sync_dist keeps Lightning quiet
            tensor = tensor.to(trainer.strategy.root_device)
        pl_module.log(name, tensor, prog_bar=prog_bar, sync_dist=trainer.world_size > 1)
        return
    # Lightning collects the values of a dataloader when that loader ends, and has no public way to
    # add to them from the end of the epoch, where alone all ranks are known to meet.
    name = f"{name}/dataloader_idx_{dataloader_idx}"
    trainer.callback_metrics[name] = tensor
    per_loader = trainer._evaluation_loop._logged_outputs  # shorter if a loader was empty
    per_loader[min(dataloader_idx, len(per_loader) - 1)][name] = tensor
