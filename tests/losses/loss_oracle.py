"""The loss written down once more, with torch's own cross entropy, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Problem(NamedTuple):
    """Inputs of a loss call."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        """Fresh leaves in a dtype."""
        hidden, weight, bias = (
            tensor.detach().to(dtype).requires_grad_()
            for tensor in (self.hidden, self.weight, self.bias)
        )
        return Problem(hidden, weight, self.labels, bias)


def problem(
    n: int = 37, d: int = 16, v: int = 101, dtype: torch.dtype = torch.float64, ignored: int = 5
) -> Problem:
    """Random inputs with logits of a spread of about 2; every ``ignored``-th label is -100."""
    labels = torch.randint(0, v, (n,))
    if ignored:
        labels[::ignored] = -100
    made = Problem(
        torch.randn(n, d, dtype=torch.float64),
        torch.randn(v, d, dtype=torch.float64) * 2 / d**0.5,
        labels,
        torch.randn(v, dtype=torch.float64) / 2,
    )
    return made.to(dtype)


def expected_rows(
    inputs: Problem,
    *,
    with_bias: bool = True,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
) -> Tensor:
    """Loss of every token, (N,) float64, from whole logits."""
    logits = inputs.hidden.double() @ inputs.weight.double().T
    if with_bias:
        logits = logits + inputs.bias.double()
    if logit_softcap is not None:
        logits = torch.tanh(logits / logit_softcap) * logit_softcap
    rows = F.cross_entropy(
        logits,
        inputs.labels,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    normaliser = logits.exp().sum(dim=1).log()
    return rows + z_loss * torch.where(inputs.labels == ignore_index, 0.0, normaliser**2)


def reduced(rows: Tensor, labels: Tensor, reduction: str, ignore_index: int = -100) -> Tensor:
    """What ``reduction`` means."""
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / max(1, int((labels != ignore_index).sum()))


def value_and_gradients(loss: Tensor, inputs: Problem, factors: Tensor) -> list[Tensor]:
    """The loss, and the gradients of ``sum(factors * loss)`` for hidden, weight and bias."""
    leaves = (inputs.hidden, inputs.weight, inputs.bias)
    gradients: Any = torch.autograd.grad(
        (loss * factors.to(loss.dtype)).sum(), leaves, materialize_grads=True
    )
    return [loss.detach(), *gradients]
