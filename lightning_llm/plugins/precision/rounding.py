"""Stochastic rounding of float32 to bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = 1 << 15  # of the 16 bits that float32 has and bfloat16 has not


def round_stochastically(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Rounds to one of the two neighbours in bfloat16, so that the expectation is ``x``.

    A uniform integer is added below the last bit that is kept, then the rest is cut off
    (Zamirai et al. 2020, https://arxiv.org/abs/2010.06192).

    Args:
        x: float32, any shape. Infinities and NaN stay what they are.
        generator: On the device of ``x``.

    Returns:
        bfloat16, the shape of ``x``.
    """
    noise = torch.empty(x.shape, dtype=torch.int16, device=x.device)
    noise.random_(-_HALF, _HALF, generator=generator)
    bits = (x.view(torch.int32) + noise).add_(_HALF).bitwise_and_(-2 * _HALF)
    # The bits of a NaN may carry over into the sign, and become a number.
    return torch.where(x == x, bits.view(torch.float32), x).to(torch.bfloat16)
