"""Negative log-likelihood of one evaluation batch, from whatever the step returned or logged."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_llm.batches import (
    IGNORE_INDEX,
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


def targets_in(batch: Any) -> Tensor | None:
    """The targets of a batch of any project, or ``None`` if it does not say which they are.

    Beside those of `find_targets` these are the second of two integer tensors, ``(x, y)``, and
    ``targets`` or ``y`` by name. They are taken as they are, as ``y`` follows ``x`` already.
    """
    found = find_targets(batch)
    if found is not None:
        labels, ids = field(batch, "labels"), field(batch, "input_ids")
        if (
            field(batch, "shift_labels") is None
            and labels.ndim == 1
            and getattr(ids, "ndim", 2) > 1
        ):
            return labels  # one a row, which nothing shifts
        return found
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        candidates = [batch[1]] if len(batch) == 2 else []
    else:
        candidates = [field(batch, name) for name in ("targets", "target", "y")]
    for targets in candidates:
        if isinstance(targets, Tensor) and targets.ndim > 0 and _is_integer(targets):
            return targets.long()
    return None


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)


def likelihood_of(
    outputs: Any,
    batch: Any,
    *,
    logged_loss: Tensor | float | None = None,
    ignore_index: int = IGNORE_INDEX,
    loss_is_mean: bool = True,
) -> Likelihood | None:
    """The likelihood of a batch from sums, else from logits, else from the mean loss.

    Args:
        outputs: What the step returned.
        batch: The batch it was given.
        logged_loss: The mean loss that the step logged, if it did.
        ignore_index: The label of positions that the module's loss leaves out.
        loss_is_mean: Whether a loss may be taken for the mean likelihood.

    Returns:
        The sums; ``None`` if all of this together does not determine them.

    Raises:
        ValueError: Logits and labels have shapes that do not fit together.
    """
    if has_sums(outputs):
        return Likelihood(_total(field(outputs, "nll_sum")), _total(field(outputs, "num_tokens")))
    targets = targets_in(batch)
    if targets is None:
        return None
    logits = logits_of(outputs)
    if logits is not None and logits.ndim == targets.ndim + 1:
        return _from_logits(logits, targets, ignore_index)
    loss = outputs if isinstance(outputs, Tensor) else field(outputs, "loss")
    if not (isinstance(loss, Tensor) and loss.numel() == 1):
        loss = logged_loss
    if loss is None or not loss_is_mean:
        return None
    count = (targets != ignore_index).sum()
    # The mean over no targets is NaN in most losses; it weighs nothing.
    mean = torch.as_tensor(loss, device=count.device).detach().reshape(())
    nll_sum = torch.where(count > 0, mean.float() * count, mean.new_zeros((), dtype=torch.float))
    return Likelihood(nll_sum, count)


def what_to_return(outputs: Any, batch: Any, *, step: str) -> str:
    """Why the likelihood of a batch is unknown, and what would tell it."""
    return (
        f"PerplexityMonitor logs no perplexity: it cannot tell the likelihood of a batch. {step} "
        f"returned {describe(outputs)}, and the batch is {describe(batch)}. Return from {step} one "
        "of: {'nll_sum': sum of the token NLLs, 'num_tokens': how many}; {'logits': (B, T, V)}; or "
        "the mean loss without label smoothing, which may also be logged as val_loss or test_loss. "
        "Logits and loss need the targets in the batch: `shift_labels`, `labels`, `targets`, or "
        "the y of (x, y)."
    )


def _from_logits(logits: Tensor, targets: Tensor, ignore_index: int) -> Likelihood:
    """Cross-entropy sum in float32, a chunk of positions at a time.

    Args:
        logits: (B, T, V), or (B, T - 1, V) when already cut; any floating dtype.
        targets: (B, T) or (B, T - 1) as from ``find_targets``.
        ignore_index: The label of positions that do not count.
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
                chunk.float(), chunk_targets, reduction="none", ignore_index=ignore_index
            )
        )
        for chunk, chunk_targets in zip(flat_logits.split(rows), flat_targets.split(rows))
    ]
    return Likelihood(torch.stack(parts).sum(), (targets != ignore_index).sum())


def _total(value: Tensor | float) -> Tensor | float:
    return sum_float64(value.detach()) if isinstance(value, Tensor) else value
