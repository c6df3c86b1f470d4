"""One linear map per group of consecutive rows, without asking the device for group sizes.

Shapes: M rows in all, E groups, K input features, N output features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiplies the rows of group e with ``weight[e]``.

    In bfloat16 on CUDA this is :func:`grouped_kernel`. Elsewhere it is one product per group; on
    CUDA that costs a synchronisation to read the group sizes.

    Args:
        x: (M, K), rows sorted by group.
        weight: (E, N, K).
        ends: (E,) int32: group e is rows ``ends[e - 1]`` to ``ends[e] - 1``.

    Returns:
        (M, N).
    """
    if x.is_cuda and x.dtype == torch.bfloat16:
        return grouped_kernel(x, weight, ends)
    return _looped_linear(x, weight, ends)


def grouped_kernel(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """``grouped_linear`` as one kernel, which reads the group sizes on the device.

    Feature sizes must be multiples of 8.
    """
    return F.grouped_mm(x, weight.mT, offs=ends)


# An operator, because the loop's bounds are data: tracing must not look inside.
@torch.library.custom_op("lightning_llm::looped_linear", mutates_args=())
def _looped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(x[start:end], weight[group].T, out=out[start:end])
        start = end
    return out


@_looped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("lightning_llm::looped_weight_gradient", mutates_args=())
def _looped_weight_gradient(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(ends.shape[0], grad.shape[1], x.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(grad[start:end].T, x[start:end], out=out[group])
        start = end
    return out


@_looped_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], grad.shape[1], x.shape[1])


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[no-untyped-def]
    x, weight, ends = ctx.saved_tensors
    grad_x = _looped_linear(grad, weight.mT, ends) if ctx.needs_input_grad[0] else None
    grad_weight = _looped_weight_gradient(grad, x, ends) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None


_looped_linear.register_autograd(_backward, setup_context=_save)
