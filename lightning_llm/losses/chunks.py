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

# Logits of one chunk. A GPU wants at least a few thousand tokens per matrix product; a CPU is at
# full speed from a few hundred, and the smaller the chunk the less memory.
_CHUNK_BYTES = {"cpu": 32 * 2**20}
_CHUNK_BYTES_ACCELERATOR = 2**30
_MIN_CHUNK = {"cpu": 128}
_MIN_CHUNK_ACCELERATOR = 2048


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
    """Tokens per chunk: as many as fit the memory budget of the device, in chunks of equal size."""
    budget = _CHUNK_BYTES.get(device_type, _CHUNK_BYTES_ACCELERATOR)
    smallest = _MIN_CHUNK.get(device_type, _MIN_CHUNK_ACCELERATOR)
    largest = max(smallest, budget // (vocab_size * dtype.itemsize))
    if num_tokens <= largest:
        return max(num_tokens, 1)
    n_chunks = -(-num_tokens // largest)
    even = -(-num_tokens // n_chunks)
    return min(largest, -(-even // 64) * 64)


def _block_elements(device_type: str) -> int:
    """Elements a softmax or accumulation step works on: a slice of the cache on a CPU.

    A float32 block of 1 MiB per thread stays in the L2 cache through all its passes.
    """
    return 2**18 * torch.get_num_threads() if device_type == "cpu" else 2**26


class _WeightGradient:
    """Sums the weight gradient of the chunks, in float32, and rounds once.

    A matrix product into float32 exists for float32 operands only, so products of 16-bit operands
    go through a scratch block of a few thousand vocabulary rows.
    """

    def __init__(self, weight: Tensor, compute_dtype: torch.dtype, n_chunks: int) -> None:
        self.dtype = weight.dtype
        self.direct = compute_dtype == softmax_dtype(compute_dtype)
        # One chunk is one product: nothing to sum up, nothing gained by float32.
        self.single = n_chunks == 1 and compute_dtype == weight.dtype
        dtype = weight.dtype if self.single else softmax_dtype(weight.dtype)
        new = torch.empty if self.single else torch.zeros
        self.total = new(weight.shape, dtype=dtype, device=weight.device)

    def add(self, logit_grad: Tensor, hidden: Tensor) -> None:
        """Adds ``logit_grad.T @ hidden`` for logit_grad (C, V) and hidden (C, D)."""
        if self.single:
            torch.mm(logit_grad.t(), hidden, out=self.total)
        elif self.direct:
            self.total.addmm_(logit_grad.t(), hidden)
        else:
            step = max(1, _block_elements(hidden.device.type) // hidden.shape[1])
            for start in range(0, self.total.shape[0], step):
                block = logit_grad[:, start : start + step]
                self.total[start : start + step].add_(torch.mm(block.t(), hidden))

    def result(self) -> Tensor:
        return self.total.to(self.dtype)


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
    grad_weight = _WeightGradient(weight, compute_dtype, n_chunks) if wanted.weight else None
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
        if grad_hidden is not None:
            grad_hidden[part] = torch.mm(logits, head)
        if grad_weight is not None:
            grad_weight.add(logits, states)
        if grad_bias is not None:
            grad_bias += logits.sum(dim=0, dtype=wide)
    del buffer  # before the last copies below, which would otherwise sit on top of it
    return (
        loss,
        nll,
        Gradients(
            grad_hidden,
            None if grad_weight is None else grad_weight.result(),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        ),
    )
