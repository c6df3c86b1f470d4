"""The polar factor of a stack of matrices, by matrix products alone.

For ``G = U S V^T`` the polar factor is ``U V^T``. An odd polynomial applied to a matrix applies
to its singular values, so a few polynomials that push every value in (0, 1] towards 1 replace the
singular value decomposition; they need no more than 16 bits and no host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
Method = Literal["polar_express", "newton_schulz"]

# Polar Express (Amsel et al. 2025, https://arxiv.org/abs/2505.16932): step k is the polynomial
# a x + b x^3 + c x^5 that is closest to 1, in the largest deviation, on the interval into which the
# steps before it map [0.001, 1]. Computed with the Remez algorithm; all but the last are taken at
# x / 1.02, so that rounding above the interval is harmless. The steps together map [0.001, 1] to
# 1 +- 0.131.
_POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.3042439, -23.6598996, 16.8731089),
    (4.1025584, -2.9310634, 0.5261943),
    (3.8958227, -2.7935258, 0.5115414),
    (3.2656046, -2.3599960, 0.4656593),
    (2.3301199, -1.7078250, 0.4295879),
)
# Beyond those: the classical quintic, whose fixed point is 1 itself.
_CLASSICAL: Coefficients = (1.875, -1.25, 0.375)
# Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: the same step each time, steep at
# 0, which maps [0.01, 1] to between 0.68 and 1.14.
_NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)


def step_coefficients(method: Method, steps: int) -> tuple[Coefficients, ...]:
    """Coefficients of every step; beyond its five, Polar Express goes on classically."""
    if method == "newton_schulz":
        return (_NEWTON_SCHULZ,) * steps
    return (_POLAR_EXPRESS + (_CLASSICAL,) * steps)[:steps]


@cache
def product_dtype(device_type: str) -> torch.dtype:
    """bfloat16, which is enough for a direction, except on CPUs that only emulate it."""
    if device_type != "cpu":
        return torch.bfloat16
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    multiplies = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if multiplies else torch.float32


def orthogonalize(
    matrices: Tensor, coefficients: Sequence[Coefficients], dtype: torch.dtype
) -> Tensor:
    """Approximates the polar factor of every matrix of a stack.

    Args:
        matrices: (K, R, C).
        coefficients: ``a, b, c`` of every step, see :func:`step_coefficients`.
        dtype: dtype of the products.

    Returns:
        (K, R, C) in ``dtype``; 0 where a matrix is 0.
    """
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:  # the Gram matrix of the shorter side is the smaller one
        x = x.mT
    # The Frobenius norm bounds the largest singular value.
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = x / norms.clamp_(min=1e-7).to(dtype)
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
