"""bfloat16 arithmetic on float32 weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override


class BF16MixedPrecision(MixedPrecision):
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

    def __init__(self) -> None:
        super().__init__("bf16-mixed", device="cpu")

    @property
    def device_type(self) -> str:
        """Another name of ``device``: where autocast is on."""
        return self.device

    @device_type.setter
    def device_type(self, device_type: str) -> None:
        self.device = device_type

    @override
    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Notes the device, which the model has been moved to by now."""
        parameter = next(model.parameters(), None)
        if parameter is not None:
            self.device = parameter.device.type
        return super().connect(model, optimizers, lr_schedulers)

    @override
    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        """Clips whatever the optimizer: nothing has to be unscaled first."""
        Precision.clip_gradients(self, *args, **kwargs)

    @override
    def forward_context(self) -> torch.autocast:  # type: ignore[override]
        return self.autocast_context_manager()
