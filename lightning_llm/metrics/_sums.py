"""A ratio of two float64 sums that live where the numbers are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

Number = Tensor | float | int


class RatioOfSums(Metric):
    """Accumulates ``numerator`` and ``denominator`` in float64, summed over ranks by ``compute``.

    The states move to the device of the first tensor from an accelerator, so ``update`` never
    waits for it. Apple's MPS has no float64: there the states stay on the CPU, and ``update``
    waits for the two values it is given.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    numerator: Tensor
    denominator: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("numerator", "denominator"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _accumulate(self, numerator: Number, denominator: Number) -> None:
        self.numerator = self.numerator + self._prepared(numerator)
        self.denominator = self.denominator + self._prepared(denominator)

    def _prepared(self, value: Number) -> Number:
        """``value`` summed, as float64, on the device of the states; a Python number as it is."""
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        if value.device.type not in ("cpu", "mps"):
            if value.device != self.numerator.device:
                self.to(value.device)
        else:
            value = value.to(self.numerator.device)
        return value.sum(dtype=torch.float64)

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.nn.Module:
        try:
            return super()._apply(fn, *args, **kwargs)
        except TypeError as error:
            if "float64" not in str(error):
                raise
            return self  # moving to MPS: the states stay where they are
