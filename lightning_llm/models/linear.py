"""Layers whose initialisation is decided where the architecture is known."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear`` with normally distributed weights and zero biases.

    The standard deviation lives in the module, so that ``reset_parameters`` gives the intended
    weights when it is called on this module alone, as FSDP does after meta-device construction.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, init_std: float) -> None:
        self.init_std = init_std
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        nn.init.normal_(self.weight, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """``nn.Embedding`` with weights of a chosen standard deviation.

    Args:
        num_embeddings: Rows.
        embedding_dim: Their width.
        init_std: Of new weights.
        tied: The output head uses the same table. Its gradient is whole anyway, and that of the
            rows looked up is added to it: on a CPU that saves a table of zeros each step, and
            going through it twice.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, init_std: float, tied: bool = False
    ) -> None:
        self.init_std = init_std
        self.tied = tied
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        nn.init.normal_(self.weight, std=self.init_std)

    def forward(self, input: Tensor) -> Tensor:
        """Looks up rows (..., D) of ids (...)."""
        if not (self.tied and _adds_rows(self.weight)):
            return super().forward(input)
        # Asked of the weight: copies, and what a pickle gives back, have lost their hooks.
        if _make_dense not in (self.weight._post_accumulate_grad_hooks or {}).values():
            self.weight.register_post_accumulate_grad_hook(_make_dense)
        return F.embedding(input, self.weight, sparse=True)


def _adds_rows(weight: Tensor) -> bool:
    """Where autograd adds a sparse gradient of rows onto a dense one in place.

    Not in 16 bits, where many small addends would vanish one by one; not in code that is traced
    or transformed, whose tensors know no sparse ones.
    """
    return (
        type(weight) is nn.Parameter
        and weight.requires_grad
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _make_dense(weight: Tensor) -> None:
    """No optimizer need know of sparse gradients: without the head's, the rows' is made dense."""
    if weight.grad is not None and weight.grad.is_sparse:
        weight.grad = weight.grad.to_dense()


def own_part(weight: Tensor, *, summed: bool = False) -> Tensor:
    """What this rank computes with: the weight, or its part of one that is spread over ranks.

    Args:
        weight: A tensor, or a ``DTensor`` over the ranks that share the layer.
        summed: Every rank has all of it, and an addend of its gradient.
    """
    if not hasattr(weight, "device_mesh"):
        return weight
    from torch.distributed.tensor import Partial

    spread: Any = weight
    part: Tensor = spread.to_local(grad_placements=[Partial()] if summed else None)
    return part


def project(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T``, whole on every rank where the rows of the weight are spread over them.

    Args:
        hidden: (..., D), alike on all ranks.
        weight: (V, D), or a ``DTensor`` of this shape.
    """
    if hasattr(weight, "device_mesh"):
        from torch.distributed.tensor import DTensor, Replicate

        spread = DTensor.from_local(hidden, weight.device_mesh, [Replicate()], run_check=False)
        product: Tensor = cast(Any, F.linear(spread, weight)).full_tensor()
        return product
    return F.linear(hidden, weight)
