"""The Hugging Face model in a loop without a framework."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.pacing import Pacer
from benchmarks.training import TrainOptions, bare_loop
from benchmarks.weights import hugging_face_model


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train. Extra: ``compile`` (the whole model)."""
    settings = TrainOptions(**options)
    settings.refuse_unknown("compile")
    model = hugging_face_model(settings).to(settings.device, settings.weight_dtype)
    forward = torch.compile(model) if "compile" in settings.extras else model

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        return forward(input_ids=ids, labels=ids).loss

    bare_loop(model, loss_of, settings, pacer)
