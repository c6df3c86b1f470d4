"""Negative log-likelihood of one evaluation batch, from whatever the step returned."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_llm.batches import (
    IGNORE_INDEX,
    count_targets,
    describe,
    field,
    find_targets,
)
from lightning_llm.callbacks._lazy_sum import sum_float64
from lightning_llm.errors import InvalidValueError

# Logits of one chunk held in float32: 2**24 elements are 64 MiB.
_CHUNK_ELEMENTS = 2**24


class Likelihood(NamedTuple):
    """Sums over the targets of one batch: tensors (0-dim) or Python numbers."""

    nll_sum: Tensor | float  # nats
    num_tokens: Tensor | float


def has_sums(outputs: Any) -> bool:
    """Whether the step returned ``nll_sum`` and ``num_tokens``."""
    return field(outputs, "nll_sum") is not None and field(outputs, "num_tokens") is not None


def logits_of(outputs: Any) -> Tensor | None:
    """The logits the step returned, if any."""
    logits = field(outputs, "logits")
    return logits if isinstance(logits, Tensor) else None


def likelihood_of(outputs: Any, batch: Any, *, step: str) -> Likelihood:
    """The likelihood of a batch from sums, else from logits, else from the mean loss.

    Args:
        outputs: What the step returned.
        batch: The batch it was given.
        step: Name of the step, for the error message.

    Raises:
        ValueError: If the outputs and the batch together do not determine the likelihood.
    """
    if has_sums(outputs):
        return Likelihood(_total(field(outputs, "nll_sum")), _total(field(outputs, "num_tokens")))
    targets = find_targets(batch)
    logits = logits_of(outputs)
    if logits is not None and targets is not None:
        return _from_logits(logits, targets)
    loss = outputs if isinstance(outputs, Tensor) else field(outputs, "loss")
    if isinstance(loss, Tensor) and loss.numel() == 1 and targets is not None:
        count = count_targets(targets)
        # The mean over no targets is NaN in most losses; it weighs nothing.
        mean = loss.detach().reshape(())
        nll_sum = torch.where(
            count > 0, mean.float() * count, mean.new_zeros((), dtype=torch.float)
        )
        return Likelihood(nll_sum, count)
    raise InvalidValueError(
        f"PerplexityMonitor cannot tell the likelihood of a batch: {step} returned "
        f"{describe(outputs)} and the batch is {describe(batch)}. Return from {step} one of: "
        "{'nll_sum': sum of the token NLLs, 'num_tokens': how many}; {'logits': (B, T, V)}; or "
        "the mean loss. The last two also need `shift_labels` or `labels` in the batch."
    )


def _from_logits(logits: Tensor, targets: Tensor) -> Likelihood:
    """Cross-entropy sum in float32, a chunk of positions at a time.

    Args:
        logits: (B, T, V), or (B, T - 1, V) when already cut; any floating dtype.
        targets: (B, T) or (B, T - 1) as from ``find_targets``.
    """
    if logits.ndim == targets.ndim + 1 and logits.shape[-2] == targets.shape[-1] + 1:
        logits = logits[..., :-1, :]  # the last position of Hugging Face labels has no target
    if logits.shape[:-1] != targets.shape:
        raise InvalidValueError(
            f"logits of shape {tuple(logits.shape)} do not match targets of shape "
            f"{tuple(targets.shape)}: expected (B, T, V) logits for (B, T) labels"
        )
    flat_logits = logits.detach().reshape(-1, logits.shape[-1])  # (N, V)
    flat_targets = targets.reshape(-1)  # (N,)
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    parts = [
        sum_float64(
            F.cross_entropy(
                chunk.float(), chunk_targets, reduction="none", ignore_index=IGNORE_INDEX
            )
        )
        for chunk, chunk_targets in zip(flat_logits.split(rows), flat_targets.split(rows))
    ]
    return Likelihood(torch.stack(parts).sum(), count_targets(targets))


def _total(value: Tensor | float) -> Tensor | float:
    return sum_float64(value.detach()) if isinstance(value, Tensor) else value
