"""Loss and logit gradient of a block of rows, written over the logits themselves.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """What is added up per token; the same for every row of a call.

    With ``z`` the (soft-capped) logits of a token, ``y`` its label and ``lse = logsumexp(z)``::

        nll  = lse - z[y]
        loss = (1 - label_smoothing) * nll
             + label_smoothing * mean_v(lse - z[v])
             + z_loss * lse ** 2
    """

    ignore_index: int
    label_smoothing: float
    z_loss: float
    logit_softcap: float | None


def loss_rows_(
    logits: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    row_weights: Tensor | None,
    terms: LossTerms,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Turns a block of logits into the gradient of its loss, in place.

    The softmax kernel of torch keeps a row in cache, so the block is read twice (maximum, softmax)
    and not once per mathematical step. The normaliser is read off the result: the largest
    probability is exactly ``1 / sum(exp(z - max z))``, so ``lse = max z - log(max p)``.

    Args:
        logits: (R, V) float32 or float64, ``hidden @ weight.T`` before bias and soft-cap.
            Overwritten: with the gradient of ``sum(row_weights * loss)`` with respect to these
            raw logits where ``with_gradient``, with scratch values otherwise.
        labels: (R,) int64.
        bias: (V,) or None.
        row_weights: (R,) factor of every row's loss in the gradient; None means 1.
        terms: the loss.
        with_gradient: False skips every pass that only the gradient needs.

    Returns:
        loss (R,) and plain negative log-likelihood (R,), in the dtype of ``logits``, 0 where the
        label is ``ignore_index``; neither is scaled by ``row_weights``.
    """
    vocab_size = logits.shape[1]
    ignored = labels == terms.ignore_index
    targets = labels.masked_fill(ignored, 0).unsqueeze(1)  # (R, 1)
    if bias is not None:
        logits.add_(bias)
    slope = None
    if terms.logit_softcap is not None:
        logits.div_(terms.logit_softcap).tanh_()
        if with_gradient:
            slope = torch.square(logits).neg_().add_(1.0)  # d tanh(x) / dx = 1 - tanh(x)^2
        logits.mul_(terms.logit_softcap)

    largest = logits.amax(dim=1, keepdim=True)
    target_logits = logits.gather(1, targets)
    mean_logits = logits.mean(dim=1, keepdim=True) if terms.label_smoothing else None
    torch.softmax(logits, dim=1, out=logits)
    lse = largest - logits.amax(dim=1, keepdim=True).log_()
    nll = lse - target_logits
    loss = nll
    if mean_logits is not None:
        loss = torch.lerp(nll, lse - mean_logits, terms.label_smoothing)
    if terms.z_loss:
        loss = loss + terms.z_loss * lse.square()

    if with_gradient:
        weights = torch.ones_like(nll) if row_weights is None else row_weights.unsqueeze(1)
        weights = weights.to(nll.dtype).masked_fill(ignored.unsqueeze(1), 0.0)  # (R, 1)
        logits.mul_(weights * (1.0 + 2.0 * terms.z_loss * lse) if terms.z_loss else weights)
        if terms.label_smoothing:
            logits.sub_(weights * (terms.label_smoothing / vocab_size))
        logits.scatter_add_(1, targets, weights * (terms.label_smoothing - 1.0))
        if slope is not None:
            logits.mul_(slope)
    zero_rows = ignored.unsqueeze(1)
    return loss.masked_fill(zero_rows, 0.0).squeeze(1), nll.masked_fill(zero_rows, 0.0).squeeze(1)
