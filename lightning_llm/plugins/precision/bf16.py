"""bfloat16 arithmetic on float32 weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override


class BF16MixedPrecision(Precision):
    """``precision="bf16-mixed"`` without the parts that belong to float16.

    bfloat16 has float32's range, so there is no loss scaling; without it nothing stands against
    a fused optimizer together with ``gradient_clip_val``, which Lightning's own plugin refuses.
    Weights, gradients and optimizer state are float32; matrix products run in bfloat16.

    Autocast's cache of converted weights is off: a weight is used once per forward, so there is
    nothing to reuse, and a weight first met under ``no_grad`` would lose its gradient.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[BF16MixedPrecision()])
    """

    precision = "bf16-mixed"

    def __init__(self) -> None:
        self.device_type = "cpu"

    @override
    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Notes the device, which the model has been moved to by now."""
        parameter = next(model.parameters(), None)
        if parameter is not None:
            self.device_type = parameter.device.type
        return super().connect(model, optimizers, lr_schedulers)

    @override
    def forward_context(self) -> torch.autocast:
        return torch.autocast(self.device_type, dtype=torch.bfloat16, cache_enabled=False)
