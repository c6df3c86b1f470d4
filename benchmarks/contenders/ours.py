"""lightning_llm in Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from benchmarks.contenders.lightning_trainer import fit
from benchmarks.pacing import Pacer
from benchmarks.training import TrainOptions, optimizer_arguments
from lightning_llm import CausalLM
from lightning_llm.batches import targets_of
from lightning_llm.losses import linear_cross_entropy_reference
from lightning_llm.models import TransformerConfig


class KeptGradients(L.Callback):
    """Has the hook for whose sake gradients are kept."""

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Look at nothing."""


class WholeLogitsLM(CausalLM):
    """Holds all logits at once, as everybody did."""

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the number of targets."""
        labels = targets_of(batch).flatten()
        hidden = self.model.backbone(
            batch["input_ids"],
            position_ids=batch.get("position_ids"),
            document_ids=batch.get("document_ids"),
        )
        loss = linear_cross_entropy_reference(
            hidden.flatten(0, 1), self.model.head_weight, labels, reduction="sum"
        )
        return loss, (labels != -100).sum()


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train.

    Extras: ``compile`` (the blocks), ``whole_logits`` (no chunked loss), ``lightning_bf16``
    (Lightning's own plugin for bf16-mixed), ``master`` (with bf16-true: float32 masters),
    ``kept_gradients`` (until the next backward pass, as Lightning keeps them).
    """
    settings = TrainOptions(**options)
    settings.refuse_unknown("compile", "whole_logits", "lightning_bf16", "master", "kept_gradients")
    fit(
        build_module(settings),
        settings,
        pacer,
        ("input_ids", "shift_labels"),
        **trainer_arguments(settings),
    )


def build_module(options: TrainOptions) -> CausalLM:
    """The module, with the starting weights of all contenders."""
    whole_logits = "whole_logits" in options.extras
    torch.manual_seed(options.seed)
    return (WholeLogitsLM if whole_logits else CausalLM)(
        TransformerConfig(**options.work.model),
        optimizer=partial(torch.optim.AdamW, **optimizer_arguments(options)),
    )


def trainer_arguments(options: TrainOptions) -> dict[str, Any]:
    """Strategy and precision."""
    arguments: dict[str, Any] = {}
    if "kept_gradients" in options.extras:
        arguments["callbacks"] = [KeptGradients()]
    if "compile" in options.extras:
        from lightning_llm.strategies import SingleDeviceStrategy

        arguments["strategy"] = SingleDeviceStrategy(compile=True)
    if options.precision == "bf16-mixed" and "lightning_bf16" not in options.extras:
        from lightning_llm.plugins import BF16MixedPrecision

        arguments["plugins"] = [BF16MixedPrecision()]
    elif options.precision == "bf16-true" and "master" in options.extras:
        from lightning_llm.plugins import MasterWeightsPrecision

        arguments["plugins"] = [MasterWeightsPrecision()]
    return arguments
