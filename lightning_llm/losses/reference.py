"""The plain twin of :mod:`lightning_llm.losses.linear_cross_entropy`: whole logits, autograd."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: Literal["sum", "mean", "none"] = "mean",
) -> Tensor:
    """Same value as ``linear_cross_entropy``, with (N, V) logits: for tests and second derivatives.

    Args:
        hidden: (N, D).
        weight: (V, D).
        labels: (N,) int64.
        bias: (V,) or None.
        ignore_index: label of tokens that count for nothing.
        label_smoothing: share of the uniform distribution in the target.
        z_loss: factor of ``logsumexp(logits) ** 2``.
        logit_softcap: ``c`` in ``c * tanh(logits / c)``.
        reduction: ``"mean"`` over the tokens that count, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or (N,) for ``"none"``, in float32 (float64 for float64 inputs).
    """
    logits = F.linear(hidden, weight, bias)  # (N, V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    loss = F.cross_entropy(
        logits,
        labels,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    valid = labels != ignore_index
    if z_loss:
        loss = loss + z_loss * torch.logsumexp(logits, dim=-1).square().where(valid, 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / valid.sum().clamp(min=1)
