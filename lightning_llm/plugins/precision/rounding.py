"""Stochastic rounding of float32 to bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

_DROPPED_BITS = 16  # float32 has 23 bits of mantissa, bfloat16 the upper 7 of them


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
    noise = torch.randint(
        1 << _DROPPED_BITS, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    rounded = (noise.add_(x.view(torch.int32)) & (-1 << _DROPPED_BITS)).view(torch.float32)
    # The bits of a NaN may carry over into the sign, and become a number.
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)
