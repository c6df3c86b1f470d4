"""A float64 sum that lives where the numbers are, for metrics that are a ratio of two sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

Number = Tensor | float | int


class RatioOfSums(Metric):
    """Accumulates ``numerator`` and ``denominator`` in float64, summed over ranks by ``compute``.

    The states follow the device of the first tensor they meet, so ``update`` never waits for the
    accelerator. Apple's MPS has no float64; there the states stay on the CPU, and ``update`` waits
    for the two values it is given.
    """

    full_state_update = False

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
        if value.device != self.numerator.device:
            if value.device.type in ("cpu", "mps"):
                value = value.to(self.numerator.device)
            else:
                self.to(value.device)
        return value.sum(dtype=torch.float64)
