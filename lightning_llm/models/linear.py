"""Layers whose initialisation is decided where the architecture is known."""

from __future__ import annotations

from typing import Any, cast

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
    """``nn.Embedding`` with weights of a chosen standard deviation."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, init_std: float) -> None:
        self.init_std = init_std
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        nn.init.normal_(self.weight, std=self.init_std)


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
