"""Lightning's Trainer as a user has it: progress bar, logger, clipping; paced by a callback."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from benchmarks.pacing import Pacer
from benchmarks.training import CLIP_NORM, TokenRows, TrainOptions


class Pacing(L.Callback):
    """Tells the pacer of each step; the last of the callbacks."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Count the step."""
        self.pacer.step_done(outputs["loss"])


def fit(
    module: L.LightningModule,
    options: TrainOptions,
    pacer: Pacer,
    fields: tuple[str, ...],
    **arguments: Any,
) -> None:
    """Fit ``module`` on the workload's tokens.

    Args:
        module: To train.
        options: Of the run.
        pacer: Told after each step.
        fields: Keys of the batch.
        **arguments: For the Trainer, in place of what follows from ``options``.
    """
    pacer.units_per_step = options.tokens_per_step
    loader = DataLoader(
        TokenRows(options, pacer.total_steps, fields),
        batch_size=options.rows,
        pin_memory=options.device == "cuda",
    )
    if not {"plugins", "precision"} & set(arguments):
        arguments["precision"] = options.precision
    settings = {
        "accelerator": "gpu" if options.device == "cuda" else "cpu",
        "devices": 1,
        "max_steps": pacer.total_steps,
        "gradient_clip_val": CLIP_NORM,
        "logger": CSVLogger("logs"),
        "enable_checkpointing": False,
        "callbacks": [],
    } | arguments
    settings["callbacks"] = [*settings["callbacks"], Pacing(pacer)]
    L.Trainer(**settings).fit(module, loader)
