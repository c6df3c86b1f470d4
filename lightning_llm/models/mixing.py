"""Learned scalars that mix what a layer computes with what is known of the token alone.

Their source is modded-nanogpt (github.com/KellerJordan/modded-nanogpt, record 9 of its track 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Mix(nn.Module):
    """``weight[0] * x + weight[1] * y``, in the dtype of x."""

    start: tuple[float, float]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2))  # one tensor: FSDP shards no 0-d parameters

    def reset_parameters(self) -> None:
        """Sets the scalars back."""
        with torch.no_grad():
            for place, value in enumerate(self.start):
                self.weight[place].fill_(value)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mixes two tensors of one shape."""
        return (self.weight[0] * x + self.weight[1] * y).to(x.dtype)


class ValueMix(_Mix):
    """Attention values and vectors by token (Zhou et al. 2024, arXiv:2410.17897)."""

    start = (0.5, 0.5)


class ResidualMix(_Mix):
    """The residual stream and what it started from."""

    start = (1.0, 0.0)
