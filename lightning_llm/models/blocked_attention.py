"""Causal attention on a CPU by matrix products over blocks of queries.

torch's attention kernel for CPUs works in tiles too small for the matrix product routines, above
all in its backward pass. Here each block of queries takes two large products forward and four
backward; keys after the block are left out, which saves up to half of them.

Shapes: B batch, T tokens, H query heads, G key/value heads, R = H / G query heads per key head,
Dh head width, N = B G, C queries of a block, S keys that a block sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_llm.models.precision import compute_dtype

_BLOCK = 128  # queries; fewer give small products, more compute scores that nobody sees
_MAX_BLOCKS = 4  # each is compiled on its own
_MULTIPLE = 64  # lengths of training; other ones share a kernel that needs no recompilation
# The weights, T (1 + 1 / blocks) / 2 numbers per query and head, are kept for the backward pass;
# beyond this they would outgrow the other activations of a layer.
_MAX_LENGTH = 1024
_DTYPES = frozenset({torch.bfloat16, torch.float32, torch.float64})


def blocks_are_faster(query: Tensor, key: Tensor) -> bool:
    """True where :func:`blocked_attention` is faster than ``scaled_dot_product_attention``.

    In compiled code, where masks, casts and softmax are one pass; else in training with bfloat16
    only, whose backward kernel is the slowest.

    Args:
        query: (B, H, T, Dh).
        key: (B, G, S, Dh).
    """
    length = query.shape[2]
    if (
        query.device.type != "cpu"
        or length != key.shape[2]
        or length > _MAX_LENGTH
        or length % _MULTIPLE != 0
        or torch.compiler.is_exporting()
    ):
        return False
    dtype = compute_dtype(query)
    if torch.compiler.is_compiling():
        return dtype in _DTYPES
    return dtype == torch.bfloat16 and torch.is_grad_enabled()


def blocked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Softmax-weighted means of the values at this and earlier positions.

    Scores and softmax are float32 (float64 for float64): products of bfloat16 matrices would
    round their results, which large scores do not bear.

    Args:
        query: (B, H, T, Dh).
        key: (B, G, T, Dh).
        value: (B, G, T, Dh).
        mask: Additive, (B or 1, H or 1, T, T), -inf at later positions; None: causal. It gets no
            gradient.
        scale: Of query-key products; None: 1 / sqrt(Dh).

    Returns:
        (B, H, T, Dh), in autocast's dtype where that is on.
    """
    dtype = compute_dtype(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):  # it would round the scores
        output, *_ = _BlockedAttention.apply(query, key, value, mask, scale)
    return output


class _BlockedAttention(torch.autograd.Function):
    """Keeps the weights of each block, in the dtype of the inputs, for the backward pass."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, ...]:
        batch, groups, length, width = key.shape
        precise = torch.promote_types(query.dtype, torch.float32)
        queries = _fold(query.to(precise) * scale, groups)
        keys = key.to(precise).reshape(-1, length, width).mT  # (N, Dh, T)
        values = value.reshape(-1, length, width)
        outputs, weights = [], []
        for first, last in _blocks(length):
            scores = torch.bmm(_rows(queries, first, last), keys[..., :last])  # (N, R C, S)
            scores = _masked(scores, mask, batch, groups, first, last)
            weights.append(scores.softmax(dim=-1).to(value.dtype))
            y = torch.bmm(weights[-1], values[:, :last])
            outputs.append(y.unflatten(1, (-1, last - first)))  # (N, R, C, Dh)
        output = torch.cat(outputs, dim=2).view(query.shape)
        return output, *weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        query, key, value, _, ctx.scale = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, key, value, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        query, key, value, output, *weights = ctx.saved_tensors
        _, groups, length, width = key.shape
        dtype, precise = query.dtype, torch.promote_types(query.dtype, torch.float32)
        means = (grad.to(precise) * output.to(precise)).sum(dim=-1, keepdim=True)
        means, queries, grads = (_fold(y, groups) for y in (means, query, grad))
        keys, values = (y.reshape(-1, length, width) for y in (key, value))
        query_grads, key_grads, value_grads = [], [], []
        for (first, last), weight in zip(_blocks(length), weights, strict=True):
            rows = _rows(grads, first, last)
            value_grads.append(torch.bmm(weight.mT, rows))  # (N, S, Dh)
            weight_grad = torch.bmm(rows, values[:, :last].mT).to(precise)
            score_grad = weight.to(precise) * (weight_grad - _rows(means, first, last))
            score_grad = (score_grad * ctx.scale).to(dtype)
            y = torch.bmm(score_grad, keys[:, :last])
            query_grads.append(y.unflatten(1, (-1, last - first)))
            key_grads.append(torch.bmm(score_grad.mT, _rows(queries, first, last)))
        return (
            torch.cat(query_grads, dim=2).view(query.shape),
            _total(key_grads, precise).to(dtype).view(key.shape),
            _total(value_grads, precise).to(dtype).view(value.shape),
            None,
            None,
        )


def _blocks(length: int) -> list[tuple[int, int]]:
    """First query of each block and the one after its last."""
    size = max(_BLOCK, -(-length // _MAX_BLOCKS))
    return [(first, min(first + size, length)) for first in range(0, length, size)]


def _fold(heads: Tensor, groups: int) -> Tensor:
    """Query heads beside their key head: (B, H, T, ...) to (N, R, T, ...)."""
    return heads.reshape(heads.shape[0] * groups, -1, *heads.shape[2:])


def _rows(folded: Tensor, first: int, last: int) -> Tensor:
    """The block's queries of all heads that share keys as rows of one matrix: (N, R C, ...)."""
    return folded[:, :, first:last].flatten(1, 2)


def _masked(
    scores: Tensor, mask: Tensor | None, batch: int, groups: int, first: int, last: int
) -> Tensor:
    """Scores (N, R C, S) with the mask added, or -inf at later positions."""
    shape = scores.shape
    if mask is None:
        scores = scores.unflatten(1, (-1, last - first))
        positions = torch.arange(last, device=scores.device)
        return scores.where(positions <= positions[first:, None], -torch.inf).view(shape)
    block = mask[:, :, first:last, :last]
    block = block.unflatten(1, (groups, -1) if mask.shape[1] > 1 else (1, 1))
    return (scores.view(batch, groups, -1, last - first, last) + block).view(shape)


def _total(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Sum of gradients (N, S, Dh) of growing numbers of keys S: (N, T, Dh)."""
    pieces, first = [], 0
    for index, part in enumerate(parts):
        last = part.shape[1]
        piece = part[:, first:last].to(dtype)
        for later in parts[index + 1 :]:
            piece = piece + later[:, first:last]
        pieces.append(piece)
        first = last
    return torch.cat(pieces, dim=1)
