"""The Hugging Face model in a plain LightningModule."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from benchmarks.contenders.lightning_trainer import fit
from benchmarks.pacing import Pacer
from benchmarks.training import TrainOptions, build_optimizer
from benchmarks.weights import hugging_face_model


class HuggingFaceModule(L.LightningModule):
    """What Lightning's introduction would have a user write."""

    def __init__(self, options: TrainOptions) -> None:
        super().__init__()
        self.options = options
        self.model = hugging_face_model(options)
        # Not the module itself: compiled, its `self.log` breaks.
        compiles = "compile" in options.extras
        self._forward = [torch.compile(self.model) if compiles else self.model]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, logged as in Lightning's examples."""
        loss = self._forward[0](**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of all contenders."""
        return build_optimizer(self.model, self.options)


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train. Extra: ``compile`` (the whole model)."""
    settings = TrainOptions(**options)
    settings.refuse_unknown("compile")
    fit(HuggingFaceModule(settings), settings, pacer, ("input_ids", "labels"))
