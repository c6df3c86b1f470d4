"""The chunked loss as torch operators, so that it is one node under autograd and torch.compile.

An operator is opaque to the compiler: a compiled caller has no graph break, and the loop over
chunks is neither unrolled nor reordered. Gradients are computed in the forward pass, because the
logits are there then, and the backward pass multiplies them by the incoming scalar.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_llm.errors import UnsupportedError
from lightning_llm.losses.chunks import Gradients, Wanted, chunked_cross_entropy, softmax_dtype
from lightning_llm.losses.softmax_rows import LossTerms

NO_SECOND_DERIVATIVE = (
    "linear_cross_entropy has no second derivative: its gradients are computed in the forward "
    "pass. Call backward() without create_graph=True, or use linear_cross_entropy_reference."
)


def _filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Operators return tensors, not None: an empty one stands for a gradient nobody wants."""
    return like.new_empty(0) if gradient is None else gradient


def _packed(gradients: Gradients, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _filled(gradients.hidden, hidden),
        _filled(gradients.weight, weight),
        _filled(gradients.bias, weight),
    )


@torch.library.custom_op("lightning_llm::linear_cross_entropy_sum", mutates_args=())
def sum_op(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    row_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    chunk_size: int | None,
    compute_dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Summed loss, summed nll and the three gradients, see :func:`chunked_cross_entropy`."""
    with torch.autocast(hidden.device.type, enabled=False):
        loss, nll, gradients = chunked_cross_entropy(
            hidden,
            weight,
            labels,
            bias,
            row_weights,
            LossTerms(ignore_index, label_smoothing, z_loss, logit_softcap),
            chunk_size,
            compute_dtype,
            Wanted(wants_hidden, wants_weight, wants_bias),
        )
        return (loss.sum(), nll.sum(), *_packed(gradients, hidden, weight))


@sum_op.register_fake
def _sum_fake(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    row_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    chunk_size: int | None,
    compute_dtype: torch.dtype,
    wants_hidden: bool,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = Gradients(
        torch.empty_like(hidden) if wants_hidden else None,
        torch.empty_like(weight, memory_format=torch.contiguous_format) if wants_weight else None,
        torch.empty_like(bias) if wants_bias and bias is not None else None,
    )
    wide = softmax_dtype(compute_dtype)
    scalars = (hidden.new_empty((), dtype=wide), hidden.new_empty((), dtype=wide))
    return (*scalars, *_packed(gradients, hidden, weight))


@torch.library.custom_op("lightning_llm::linear_cross_entropy_rows", mutates_args=())
def rows_op(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    chunk_size: int | None,
    compute_dtype: torch.dtype,
) -> Tensor:
    """Loss (N,) of every token; its gradient recomputes the logits, see :func:`_rows_backward`."""
    with torch.autocast(hidden.device.type, enabled=False):
        terms = LossTerms(ignore_index, label_smoothing, z_loss, logit_softcap)
        return chunked_cross_entropy(
            hidden, weight, labels, bias, None, terms, chunk_size, compute_dtype, Wanted()
        )[0]


@rows_op.register_fake
def _rows_fake(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    chunk_size: int | None,
    compute_dtype: torch.dtype,
) -> Tensor:
    return hidden.new_empty((hidden.shape[0],), dtype=softmax_dtype(compute_dtype))


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, labels, bias, row_weights, *ctx.options, _, _, _ = inputs
    _, nll, *gradients = output
    ctx.mark_non_differentiable(nll, *gradients)
    # Without this, the backward pass would be handed zeros of the size of the gradients.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, labels, bias, row_weights)
    # Detached: as outputs they hold this node, which would hold them.
    ctx.gradients = [gradient.detach() for gradient in gradients]


def _sum_backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise UnsupportedError(NO_SECOND_DERIVATIVE)
    wants_hidden, wants_weight, _, wants_bias, *_ = ctx.needs_input_grad
    nothing = (None,) * 9
    if grad_loss is None:
        return (None, None, None, None, None, *nothing)
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:  # retain_graph=True: the first backward pass scaled them in place
        hidden, weight, labels, bias, row_weights = ctx.saved_tensors
        wants = (wants_hidden, wants_weight, wants_bias)
        inputs = (hidden, weight, labels, bias, row_weights, *ctx.options, *wants)
        gradients = sum_op(*inputs)[2:]
    scaled = [gradient.mul_(grad_loss) for gradient in gradients]
    return (
        scaled[0] if wants_hidden else None,
        scaled[1] if wants_weight else None,
        None,
        scaled[2] if wants_bias else None,
        None,
        *nothing,
    )


sum_op.register_autograd(_sum_backward, setup_context=_sum_setup)


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, labels, bias, *ctx.options = inputs
    ctx.save_for_backward(hidden, weight, labels, bias)


def _rows_backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
    """The weight gradient sums over rows, so it cannot be prepared before their factors exist."""
    if torch.is_grad_enabled():
        raise UnsupportedError(NO_SECOND_DERIVATIVE)
    hidden, weight, labels, bias = ctx.saved_tensors
    wants_hidden, wants_weight, _, wants_bias, *_ = ctx.needs_input_grad
    wants = (wants_hidden, wants_weight, wants_bias)
    gradients = sum_op(hidden, weight, labels, bias, grad_loss, *ctx.options, *wants)[2:]
    return (
        gradients[0] if wants_hidden else None,
        gradients[1] if wants_weight else None,
        None,
        gradients[2] if wants_bias else None,
        *((None,) * 6),
    )


rows_op.register_autograd(_rows_backward, setup_context=_rows_setup)
