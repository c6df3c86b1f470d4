"""A linear layer whose three matrix products run in 8-bit floating point.

Shapes: M tokens, K input features, N output features; R, S, C rows, rows and columns in general.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Recipe = Literal["tensorwise", "rowwise"]

# What the kernels ask of every extent but the rows of the left factor.
ALIGNMENT = 16
# A tensor of zeros needs a scale too. Gradients per token are tiny: 1e-12 would be too large.
_SMALLEST_MAXIMUM = 1e-30


class Quantized(NamedTuple):
    """A matrix in 8 bits: ``data * scale`` is about what it was."""

    data: Tensor  # (R, C), rows contiguous
    scale: Tensor  # float32: () for one scale, (R, 1) for one per row


def quantize(x: Tensor, dtype: torch.dtype, *, rowwise: bool) -> Quantized:
    """Scales a matrix so that its largest magnitude, or that of each row, is the largest of dtype.

    Args:
        x: (R, C), any floating dtype.
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.
        rowwise: One scale per row instead of one in all.
    """
    largest = torch.finfo(dtype).max
    magnitude = x.abs()
    maximum = magnitude.amax(dim=1, keepdim=True) if rowwise else magnitude.amax()
    scale = maximum.float().clamp(min=_SMALLEST_MAXIMUM) / largest
    scaled = (x.float() / scale).clamp(-largest, largest)  # the cast itself need not saturate
    return Quantized(scaled.to(dtype).contiguous(), scale)


def multiply(a: Quantized, b: Quantized, *, fast: bool) -> Tensor:
    """``a @ b.T`` in bfloat16.

    On a CPU the factors are multiplied in float32, which is what torch does there except where it
    finds AMX: then it asks oneDNN, which has no float8 product for most such processors but a
    reference loop, hundreds of times as slow.

    Args:
        a: (R, C).
        b: (S, C).
        fast: Sum with fewer bits, as is usual in the forward pass only.

    Returns:
        (R, S).
    """
    if a.data.device.type == "cpu":
        product = torch.mm(a.data.float() * a.scale, (b.data.float() * b.scale).T)
        return product.to(torch.bfloat16)
    return torch._scaled_mm(
        a.data,
        b.data.T,
        scale_a=a.scale,
        scale_b=b.scale.T if b.scale.ndim else b.scale,
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


class _TensorwiseProduct(torch.autograd.Function):
    """``x @ weight.T``, one scale per tensor; gradients in e5m2, which has their range.

    The quantized factors serve the backward pass too: half the memory of bfloat16 activations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8 = quantize(x, torch.float8_e4m3fn, rowwise=False)
        weight8 = quantize(weight, torch.float8_e4m3fn, rowwise=False)
        ctx.save_for_backward(*x8, *weight8)
        return multiply(x8, weight8, fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        grad8 = quantize(grad, torch.float8_e5m2, rowwise=False)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            transposed = Quantized(weight.T.contiguous(), weight_scale)  # (K, N)
            grad_x = multiply(grad8, transposed, fast=False)
        if ctx.needs_input_grad[1]:
            rows = Quantized(grad8.data.T.contiguous(), grad8.scale)  # (N, M)
            columns = Quantized(x.T.contiguous(), x_scale)  # (K, M)
            grad_weight = multiply(rows, columns, fast=False)
        return grad_x, grad_weight


class _RowwiseProduct(torch.autograd.Function):
    """``x @ weight.T``, one scale per row of each factor; e4m3 throughout.

    Each product sums over another dimension and needs scales along it, so the factors are kept
    as they were and quantized again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.to(torch.bfloat16)
        ctx.save_for_backward(x, weight)
        return multiply(_rows(x), _rows(weight), fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply(_rows(grad), _rows(weight.T), fast=False)
        if ctx.needs_input_grad[1]:
            grad_weight = multiply(_rows(grad.T), _rows(x.T), fast=False)
        return grad_x, grad_weight


def _rows(x: Tensor) -> Quantized:
    return quantize(x, torch.float8_e4m3fn, rowwise=True)


class Float8Linear(nn.Linear):
    """``nn.Linear`` in float8 with scales from the current values; parameters are unchanged.

    The output is bfloat16. Tokens in a number that is no multiple of 16 are multiplied in
    bfloat16, since the kernels cannot sum over them.
    """

    recipe: Recipe
    plain_class = nn.Linear  # the same layer in the precision of its parameters

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., K) to (..., N)."""
        x = input.flatten(0, -2)  # (M, K)
        if x.shape[0] == 0 or x.shape[0] % ALIGNMENT:
            bias = None if self.bias is None else self.bias.to(torch.bfloat16)
            return F.linear(input.to(torch.bfloat16), self.weight.to(torch.bfloat16), bias)
        product = _TensorwiseProduct if self.recipe == "tensorwise" else _RowwiseProduct
        y = cast(Tensor, product.apply(x, self.weight))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.unflatten(0, input.shape[:-1])


def to_float8(linear: nn.Linear, recipe: Recipe) -> None:
    """Turns a layer into a :class:`Float8Linear` in place: hooks, names and references stay."""
    linear.__class__ = Float8Linear
    linear.recipe = recipe  # type: ignore[assignment]
