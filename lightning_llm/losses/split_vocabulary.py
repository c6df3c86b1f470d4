"""The chunked loss where every rank of a group holds some rows of the head: vocabulary-parallel.

A rank computes the logits of its own rows. What the softmax needs of the others are three numbers
per token: the largest logit, the sum of the exponentials, and the logit of the target (Shoeybi et
al. 2019, https://arxiv.org/abs/1909.08053, section 3). Logits never cross between ranks.

Shapes: N tokens, D model width, V vocabulary, W rows of the head on this rank, C tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_llm.errors import InvalidValueError, UnsupportedError
from lightning_llm.losses.chunks import WeightGradient, auto_chunk_size, softmax_dtype
from lightning_llm.losses.operators import NO_SECOND_DERIVATIVE
from lightning_llm.losses.softmax_rows import LossTerms


@dataclass(frozen=True)
class Share:
    """Which rows of the head this rank holds: those that ``torch.chunk`` gives it."""

    group: Any  # the process group that holds the others
    vocab_size: int  # rows on all ranks together
    first: int  # row

    @classmethod
    def of(cls, weight: Any) -> Share:
        """The share of a ``DTensor`` that is split by rows over one mesh dimension."""
        mesh = weight.device_mesh
        assert mesh.ndim == 1, "sharded weights are gathered before the loss reads them"
        assert weight.placements[0].is_shard(0), f"placements {weight.placements}"
        rows = -(-weight.shape[0] // mesh.size())
        return cls(mesh.get_group(), weight.shape[0], mesh.get_local_rank() * rows)


def is_split(weight: Tensor) -> bool:
    """Whether the tensor is a ``DTensor`` (named like this, because its import takes long)."""
    return hasattr(weight, "device_mesh")


def split_cross_entropy(
    hidden: Tensor,
    weight: Any,
    labels: Tensor,
    bias: Any,
    terms: LossTerms,
    chunk_size: int | None,
    compute_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Loss of every token summed up, and likelihood; alike on all ranks, as are the gradients.

    All ranks of the group call it with the same hidden states.

    Args:
        hidden: (N, D), whole on every rank; its gradient is, too.
        weight: (V, D) DTensor, split by rows over one mesh dimension.
        labels: (N,) int64.
        bias: (V,) DTensor, split alike, or None.
        terms: the loss per row.
        chunk_size: tokens per chunk, or None to choose.
        compute_dtype: dtype of the matrix products.

    Returns:
        Two scalars; the second carries no gradient.
    """
    share = Share.of(weight)
    own = weight.to_local()
    own_bias = None if bias is None else bias.to_local()
    options = (labels, share, terms, chunk_size, compute_dtype)
    loss, nll = _SplitSum.apply(hidden, own, own_bias, torch.is_grad_enabled(), *options)
    return loss, nll


def split_rows(
    hidden: Tensor,
    weight: Any,
    labels: Tensor,
    bias: Any,
    terms: LossTerms,
    chunk_size: int | None,
    compute_dtype: torch.dtype,
) -> Tensor:
    """Loss (N,) of every token, for evaluation; arguments as :func:`split_cross_entropy`.

    Raises:
        ValueError: A gradient would be wanted.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        raise InvalidValueError(
            "reduction='none' has no gradient where the rows of the head are spread over ranks "
            "(tensor_parallel_size > 1); use reduction='sum', or torch.no_grad()"
        )
    own_bias = None if bias is None else bias.to_local()
    run = _Run(hidden, weight.to_local(), own_bias, labels, Share.of(weight), terms, compute_dtype)
    return run(chunk_size, (False, False, False))[0]


class _SplitSum(torch.autograd.Function):
    """Computes gradients together with the loss, while a chunk's logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        recording: bool,
        labels: Tensor,
        share: Share,
        terms: LossTerms,
        chunk_size: int | None,
        compute_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        wanted = tuple(need and recording for need in ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            run = _Run(hidden, weight, bias, labels, share, terms, compute_dtype)
            loss, nll, gradients = run(chunk_size, wanted)
        ctx.save_for_backward(*gradients)
        total = nll.sum()
        ctx.mark_non_differentiable(total)
        return loss.sum(), total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise UnsupportedError(NO_SECOND_DERIVATIVE)
        scaled = [None if g is None else g * outer[0].to(g.dtype) for g in ctx.saved_tensors]
        return (*scaled, *([None] * 6))


class _Run:
    """One pass over the chunks."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        share: Share,
        terms: LossTerms,
        compute_dtype: torch.dtype,
    ) -> None:
        self.hidden, self.weight, self.bias, self.labels = hidden, weight, bias, labels
        self.share, self.terms, self.dtype = share, terms, compute_dtype
        self.wide = softmax_dtype(compute_dtype)

    def __call__(
        self, chunk_size: int | None, wanted: tuple[bool, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Loss (N,), likelihood (N,), and the gradients of hidden, own rows and own bias."""
        hidden, weight, bias = self.hidden, self.weight, self.bias
        count = hidden.shape[0]
        if chunk_size is None:  # alike on all ranks, which meet in every chunk
            most_rows = -(-self.share.vocab_size // dist.get_world_size(self.share.group))
            chunk_size = auto_chunk_size(count, most_rows, self.dtype, hidden.device.type)
        n_chunks = -(-count // chunk_size)
        head = weight.to(self.dtype)
        loss = torch.empty(count, dtype=self.wide, device=hidden.device)
        nll = torch.empty_like(loss)
        wants_hidden, wants_weight, wants_bias = wanted
        grad_hidden = torch.empty_like(hidden, dtype=self.wide) if wants_hidden else None
        grad_weight = WeightGradient(weight, self.dtype, n_chunks) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=self.wide) if wants_bias else None  # type: ignore[arg-type]
        for start in range(0, count, chunk_size):
            part = slice(start, min(start + chunk_size, count))
            states = hidden[part].to(self.dtype)
            logits = torch.mm(states, head.t()).to(self.wide)
            loss[part], nll[part] = self._rows_(logits, self.labels[part], any(wanted))
            slopes = logits.to(self.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = torch.mm(slopes, head)
            if grad_weight is not None:
                grad_weight.add(slopes, states)
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
        if grad_hidden is not None:
            dist.all_reduce(grad_hidden, group=self.share.group)
            grad_hidden = grad_hidden.to(hidden.dtype)
        if grad_bias is not None and bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        own = None if grad_weight is None else grad_weight.result()
        return loss, nll, (grad_hidden, own, grad_bias)

    def _rows_(self, logits: Tensor, labels: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Loss and likelihood (C,); the logits (C, W) are overwritten with their gradient."""
        terms, vocab_size, group = self.terms, self.share.vocab_size, self.share.group
        counts = labels != terms.ignore_index
        places = labels - self.share.first
        owned = counts & (places >= 0) & (places < logits.shape[1])
        places = places.masked_fill(~owned, 0).unsqueeze(1)
        if self.bias is not None:
            logits.add_(self.bias.to(self.wide))
        slope = None
        if terms.logit_softcap is not None:
            logits.div_(terms.logit_softcap).tanh_()
            slope = torch.square(logits).neg_().add_(1.0) if with_gradient else None
            logits.mul_(terms.logit_softcap)

        largest = logits.amax(dim=1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        target = logits.gather(1, places).squeeze(1).masked_fill(~owned, 0.0)
        total = logits.sum(dim=1) if terms.label_smoothing else torch.zeros_like(target)
        logits.sub_(largest.unsqueeze(1)).exp_()
        sums = torch.stack((logits.sum(dim=1), target, total))
        dist.all_reduce(sums, group=group)
        normaliser, target, total = sums.unbind()
        lse = largest + normaliser.log()
        nll = lse - target
        loss = nll
        if terms.label_smoothing:
            loss = torch.lerp(nll, lse - total / vocab_size, terms.label_smoothing)
        if terms.z_loss:
            loss = loss + terms.z_loss * lse.square()

        if with_gradient:
            weights = counts.to(self.wide).unsqueeze(1)  # (C, 1)
            scale = weights * (1.0 + 2.0 * terms.z_loss * lse.unsqueeze(1))
            logits.mul_(scale / normaliser.unsqueeze(1))
            if terms.label_smoothing:
                logits.sub_(weights * (terms.label_smoothing / vocab_size))
            at_target = owned.to(self.wide).unsqueeze(1) * (terms.label_smoothing - 1.0)
            logits.scatter_add_(1, places, at_target)
            if slope is not None:
                logits.mul_(slope)
        return loss.masked_fill(~counts, 0.0), nll.masked_fill(~counts, 0.0)
