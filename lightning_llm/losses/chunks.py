"""Cross entropy of a linear head, chunk by chunk over the tokens, with its gradients.

Shapes: N tokens, D model width, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_llm.losses.softmax_rows import LossTerms, loss_rows_

# Logits of one chunk, at least and at most: of a CPU, whose products are at full speed from 250
# tokens on, their number; of a GPU, which wants a few thousand tokens, their bytes.
_CHUNK_LOGITS_CPU = (13 * 2**20, 2**24)
_CHUNK_BYTES_ACCELERATOR = 2**30
_MIN_CHUNK_CPU = 128
_MIN_CHUNK_ACCELERATOR = 2048
# Chunks whose weight gradients are summed in 16 bits before the sum is added in float32. float16
# has the digits but not the range.
_CHUNKS_PER_SUM = {torch.bfloat16: 8}


class Gradients(NamedTuple):
    """Gradients of the summed loss; None where not asked for."""

    hidden: Tensor | None  # (N, D)
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)


@dataclass(frozen=True)
class Wanted:
    """Which gradients a call computes."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False

    @property
    def any(self) -> bool:
        """True where the logit gradient is needed at all."""
        return self.hidden or self.weight or self.bias


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, everything else is summed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def auto_chunk_size(num_tokens: int, vocab_size: int, dtype: torch.dtype, device_type: str) -> int:
    """Tokens per chunk, in chunks of equal size: an eighth of them, within the device's bounds.

    Eight is as many chunks as :class:`WeightGradient` sums without a second sum.
    """
    if device_type == "cpu":
        smallest, bounds = _MIN_CHUNK_CPU, _CHUNK_LOGITS_CPU
    else:
        smallest, bounds = _MIN_CHUNK_ACCELERATOR, (_CHUNK_BYTES_ACCELERATOR // dtype.itemsize,) * 2
    least, most = (max(smallest, logits // vocab_size) for logits in bounds)
    largest = min(max(-(-num_tokens // 8), least), most)
    if num_tokens <= largest:
        return max(num_tokens, 1)
    n_chunks = -(-num_tokens // largest)
    even = -(-num_tokens // n_chunks)
    return min(largest, -(-even // 32) * 32)


def _block_elements(device_type: str) -> int:
    """Elements a softmax or accumulation step works on: a slice of the cache on a CPU.

    A float32 block of 1 MiB per thread stays in the L2 cache through all its passes.
    """
    return 2**18 * torch.get_num_threads() if device_type == "cpu" else 2**26


class WeightGradient:
    """Sums the weight gradient of the chunks with as few bytes and passes as its dtype allows.

    A matrix product that adds onto a sum is one call. It sums in float32 inside, but the sum it
    reads and writes has the dtype of its operands, except on CUDA. So elsewhere 16-bit chunks are
    summed in 16 bits, a few at a time, and these sums in float32: with eight roundings of 2^-9 at
    most, the error stays within about twice that of one product over all tokens.
    """

    def __init__(self, weight: Tensor, compute_dtype: torch.dtype, n_chunks: int) -> None:
        self.weight = weight
        self.wide = softmax_dtype(compute_dtype)
        self.adds_wide = _adds_16_bit_products_in_float32(compute_dtype, weight.device)
        dtype = self.wide if self.adds_wide else compute_dtype
        if n_chunks == 1 and compute_dtype == weight.dtype:
            dtype = weight.dtype  # one product: nothing to sum up, nothing gained by float32
        self.part = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        self.in_part = 0  # chunks
        self.most = n_chunks if dtype == self.wide else _CHUNKS_PER_SUM.get(dtype, 1)
        self.total: Tensor | None = None  # of the parts that are full, in float32

    def add(self, logit_grad: Tensor, hidden: Tensor) -> None:
        """Adds ``logit_grad.T @ hidden`` for logit_grad (C, V) and hidden (C, D)."""
        if self.in_part == self.most:
            self._close_part()
        if self.part.dtype != hidden.dtype:
            beta = 1 if self.in_part else 0
            torch.addmm(
                self.part,
                logit_grad.t(),
                hidden,
                out_dtype=self.part.dtype,
                beta=beta,
                out=self.part,
            )
        elif self.in_part == 0:
            torch.mm(logit_grad.t(), hidden, out=self.part)
        else:
            self.part.addmm_(logit_grad.t(), hidden)
        self.in_part += 1

    def _close_part(self) -> None:
        if self.total is None:
            self.total = self.part.to(self.wide)
        else:
            self.total.add_(self.part)
        self.in_part = 0

    def result(self) -> Tensor:
        """The sum in the dtype of the weight, (V, D)."""
        if self.in_part == 0 and self.total is None:
            return self.part.zero_().to(self.weight.dtype)  # no tokens
        if self.total is None:
            return self.part.to(self.weight.dtype)
        self._close_part()
        # Into memory that is there already, where the dtype is right.
        same = self.part.dtype == self.weight.dtype
        return self.part.copy_(self.total) if same else self.total.to(self.weight.dtype)


def _adds_16_bit_products_in_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """cuBLAS does, through ``addmm(out_dtype=)``, from compute capability 8 (Ampere) on."""
    return (
        device.type == "cuda"
        and dtype.itemsize == 2
        and torch.version.hip is None
        and "dtype_out" in torch.ops.aten.addmm.overloads()
        and torch.cuda.get_device_capability(device)[0] >= 8
    )


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _uses_triton(dtype: torch.dtype, device: torch.device) -> bool:
    """Triton needs a GPU of compute capability 7 (Volta) and has no use for float64."""
    return (
        device.type == "cuda"
        and dtype != torch.float64
        and _has_triton()
        and torch.cuda.get_device_capability(device)[0] >= 7
    )


def _logit_buffer(rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if _uses_triton(dtype, device):
        from lightning_llm.losses.triton_rows import padded_logits

        return padded_logits(rows, vocab_size, dtype, device)
    return torch.empty((rows, vocab_size), dtype=dtype, device=device)


def _logit_gradient_(
    logits: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    row_weights: Tensor | None,
    terms: LossTerms,
    with_gradient: bool,
    loss: Tensor,
    nll: Tensor,
) -> None:
    """Runs :func:`loss_rows_` over blocks of a chunk; fills loss (C,) and nll (C,).

    16-bit logits pass through one float32 block, and their gradient is rounded back in place.
    """
    if _uses_triton(logits.dtype, logits.device):
        from lightning_llm.losses.triton_rows import triton_loss_rows_

        loss[:], nll[:] = triton_loss_rows_(logits, labels, bias, row_weights, terms, with_gradient)
        return
    rows, vocab_size = logits.shape
    step = max(1, _block_elements(logits.device.type) // vocab_size)
    exact = logits.dtype == loss.dtype
    scratch = None if exact else logits.new_empty((min(step, rows), vocab_size), dtype=loss.dtype)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        block = logits[part]
        wide = block if scratch is None else scratch[: block.shape[0]].copy_(block)
        weights = None if row_weights is None else row_weights[part]
        loss[part], nll[part] = loss_rows_(wide, labels[part], bias, weights, terms, with_gradient)
        if with_gradient and not exact:
            block.copy_(wide)


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    row_weights: Tensor | None,
    terms: LossTerms,
    chunk_size: int | None,
    compute_dtype: torch.dtype,
    wanted: Wanted,
) -> tuple[Tensor, Tensor, Gradients]:
    """Loss, likelihood and gradients; at most ``chunk_size`` rows of logits exist at a time.

    The gradient of a chunk replaces its logits as soon as they are known, so there are three
    matrix products per chunk, as many as with whole logits: nothing is computed twice.

    Args:
        hidden: (N, D).
        weight: (V, D).
        labels: (N,) int64.
        bias: (V,) or None.
        row_weights: (N,) factors of the rows in the gradient, or None for 1.
        terms: the loss per row.
        chunk_size: tokens per chunk, or None for :func:`auto_chunk_size`.
        compute_dtype: dtype of the matrix products.
        wanted: the gradients to compute.

    Returns:
        loss (N,) and nll (N,) in float32 (float64 for float64 products), unweighted, and the
        gradients of ``sum(row_weights * loss)`` in the dtypes of their tensors.
    """
    num_tokens, vocab_size = hidden.shape[0], weight.shape[0]
    device = hidden.device
    if chunk_size is None:
        chunk_size = auto_chunk_size(num_tokens, vocab_size, compute_dtype, device.type)
    chunk_size = min(chunk_size, max(num_tokens, 1))
    wide = softmax_dtype(compute_dtype)
    loss = torch.empty(num_tokens, dtype=wide, device=device)
    nll = torch.empty_like(loss)
    head = weight.to(compute_dtype)
    wide_bias = None if bias is None else bias.to(wide)
    grad_hidden = torch.empty_like(hidden) if wanted.hidden else None
    n_chunks = -(-num_tokens // chunk_size)
    grad_weight = WeightGradient(weight, compute_dtype, n_chunks) if wanted.weight else None
    grad_bias = torch.zeros(vocab_size, dtype=wide, device=device) if wanted.bias else None

    buffer = _logit_buffer(chunk_size, vocab_size, compute_dtype, device)
    for start in range(0, num_tokens, chunk_size):
        part = slice(start, min(start + chunk_size, num_tokens))
        states = hidden[part].to(compute_dtype)
        logits = torch.mm(states, head.t(), out=buffer[: states.shape[0]])  # (C, V)
        weights = None if row_weights is None else row_weights[part]
        _logit_gradient_(
            logits, labels[part], wide_bias, weights, terms, wanted.any, loss[part], nll[part]
        )
        if grad_hidden is not None and grad_hidden.dtype == compute_dtype:
            torch.mm(logits, head, out=grad_hidden[part])
        elif grad_hidden is not None:
            grad_hidden[part] = torch.mm(logits, head)
        if grad_weight is not None:
            grad_weight.add(logits, states)
        if grad_bias is not None:
            grad_bias += logits.sum(dim=0, dtype=wide)
    del buffer, head  # before the last copies below, which would otherwise sit on top of them
    return (
        loss,
        nll,
        Gradients(
            grad_hidden,
            None if grad_weight is None else grad_weight.result(),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        ),
    )
