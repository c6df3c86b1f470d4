"""The Triton twin of :func:`lightning_llm.losses.softmax_rows.loss_rows_`, for CUDA and ROCm.

A chunk of logits is read twice and written once, in its own dtype, with all arithmetic in float32
(online softmax: Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867). In torch operations
the same needs a float32 copy and about four times the traffic, and at small model widths the
traffic of the logits is a large part of a step.

Triton comes with torch where torch has it at all. This module imports it, so it is only imported
on the way to a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_llm.losses.softmax_rows import LossTerms

_BLOCK = 4096  # vocabulary entries per step of a program: 16 per thread with 8 warps
_WARPS = 8


@triton.jit
def _capped_logits(  # type: ignore[no-untyped-def]
    row_ptr,
    bias_ptr,
    columns,
    vocab_size,
    row_stride,
    softcap,
    has_bias: tl.constexpr,
    has_softcap: tl.constexpr,
):
    """Final logits of some columns in float32, and ``tanh`` of the soft-cap (0 without one).

    Loads run up to the row stride, a multiple of 16: a mask at an odd vocabulary size would turn
    them into single elements. What lies beyond the vocabulary is for the caller to ignore.
    """
    x = tl.load(row_ptr + columns, mask=columns < row_stride, other=0.0).to(tl.float32)
    if has_bias:
        x += tl.load(bias_ptr + columns, mask=columns < vocab_size, other=0.0)
    tanh = tl.zeros_like(x)
    if has_softcap:
        tanh = 2.0 * tl.sigmoid(2.0 * x / softcap) - 1.0
        x = softcap * tanh
    return x, tanh


@triton.jit
def _loss_rows_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    labels_ptr,
    bias_ptr,
    weights_ptr,
    loss_ptr,
    nll_ptr,
    vocab_size,
    row_stride,
    ignore_index,
    label_smoothing,
    z_loss,
    softcap,
    has_bias: tl.constexpr,
    has_weights: tl.constexpr,
    has_softcap: tl.constexpr,
    has_smoothing: tl.constexpr,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
):
    """One program per row of logits (R, V)."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    label = tl.load(labels_ptr + row)
    counts = label != ignore_index

    largest = float("-inf")
    normaliser = 0.0
    total = 0.0
    target = 0.0
    for start in range(0, vocab_size, block):
        columns = start + tl.arange(0, block)
        inside = columns < vocab_size
        x, _ = _capped_logits(
            row_ptr, bias_ptr, columns, vocab_size, row_stride, softcap, has_bias, has_softcap
        )
        if has_smoothing:
            total += tl.sum(tl.where(inside, x, 0.0), 0)
        target += tl.sum(tl.where(columns == label, x, 0.0), 0)
        x = tl.where(inside, x, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(x, 0))
        normaliser = normaliser * tl.exp(largest - new_largest) + tl.sum(tl.exp(x - new_largest), 0)
        largest = new_largest
    lse = largest + tl.log(normaliser)

    # A label outside the vocabulary must not pass for a token without loss.
    in_range = (label >= 0) & (label < vocab_size)
    nll = tl.where(in_range, lse - target, float("nan"))
    loss = nll + z_loss * lse * lse
    if has_smoothing:
        loss += label_smoothing * (target - total / vocab_size)
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0))
    tl.store(nll_ptr + row, tl.where(counts, nll, 0.0))

    if with_gradient:
        weight = 1.0
        if has_weights:
            weight = tl.load(weights_ptr + row).to(tl.float32)
        scale = 1.0 + 2.0 * z_loss * lse
        for start in range(0, vocab_size, block):
            columns = start + tl.arange(0, block)
            x, tanh = _capped_logits(
                row_ptr, bias_ptr, columns, vocab_size, row_stride, softcap, has_bias, has_softcap
            )
            gradient = tl.exp(x - lse) * scale - label_smoothing / vocab_size
            gradient = tl.where(columns == label, gradient - (1.0 - label_smoothing), gradient)
            if has_softcap:
                gradient *= 1.0 - tanh * tanh
            gradient = tl.where(counts, gradient * weight, 0.0)
            gradient = gradient.to(logits_ptr.dtype.element_ty)
            tl.store(row_ptr + columns, gradient, mask=columns < row_stride)


def padded_logits(rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised (rows, V) with a row stride of a multiple of 16.

    Aligned rows are what vector loads and the matrix kernels want, whatever the vocabulary size.
    """
    stride = -(-vocab_size // 16) * 16
    return torch.empty((rows, stride), dtype=dtype, device=device)[:, :vocab_size]


def triton_loss_rows_(
    logits: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    row_weights: Tensor | None,
    terms: LossTerms,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Same as :func:`lightning_llm.losses.softmax_rows.loss_rows_`, for 16-bit logits too.

    Args:
        logits: (R, V) float32, bfloat16 or float16; overwritten, and with them the padding of the
            rows up to their stride (see :func:`padded_logits`).
        labels: (R,) int64.
        bias: (V,) float32 or None.
        row_weights: (R,) or None.
        terms: the loss.
        with_gradient: whether to overwrite ``logits`` with their gradient.

    Returns:
        loss (R,) and nll (R,) in float32. Both are NaN for a label outside the vocabulary.
    """
    rows, vocab_size = logits.shape
    loss = torch.empty(rows, dtype=torch.float32, device=logits.device)
    nll = torch.empty_like(loss)
    softcap = terms.logit_softcap
    _loss_rows_kernel[(rows,)](
        logits,
        labels.contiguous(),
        logits if bias is None else bias.contiguous(),
        logits if row_weights is None else row_weights.contiguous(),
        loss,
        nll,
        vocab_size,
        logits.stride(0),
        terms.ignore_index,
        terms.label_smoothing,
        terms.z_loss,
        1.0 if softcap is None else softcap,
        has_bias=bias is not None,
        has_weights=row_weights is not None,
        has_softcap=softcap is not None,
        has_smoothing=terms.label_smoothing > 0.0,
        with_gradient=with_gradient,
        block=min(_BLOCK, triton.next_power_of_2(vocab_size)),
        num_warps=_WARPS,
    )
    return loss, nll
