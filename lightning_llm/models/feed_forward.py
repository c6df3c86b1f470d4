"""The position-wise feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.linear import Linear
from lightning_llm.models.precision import compute_dtype


def squared_relu(x: Tensor) -> Tensor:
    """``max(x, 0) ** 2`` (So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in the tanh approximation of GPT-2."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": gelu_tanh,
    "gelu": gelu_tanh,
    "relu2": squared_relu,
    "geglu_erf": F.gelu,
    "gelu_erf": F.gelu,
}


class FeedForward(nn.Module):
    """``down(act(up(x)))``; for hidden-width activations a of any leading shape."""

    def __init__(self, config: TransformerConfig, *, residual_std: float) -> None:
        super().__init__()
        assert config.hidden_dim is not None
        self.activation = ACTIVATIONS[config.mlp]
        dim, hidden, bias, std = config.dim, config.hidden_dim, config.mlp_bias, config.init_std
        self.up = Linear(dim, hidden, bias=bias, init_std=std)
        self.down = Linear(hidden, dim, bias=bias, init_std=residual_std)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(FeedForward):
    """``down(act(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: TransformerConfig, *, residual_std: float) -> None:
        super().__init__(config, residual_std=residual_std)
        assert config.hidden_dim is not None
        self.gate = Linear(
            config.dim, config.hidden_dim, bias=config.mlp_bias, init_std=config.init_std
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        x = x.to(compute_dtype(x))  # once: autocast would make, and keep, a copy per product
        return self.down(self.activation(self.gate(x)) * self.up(x))
