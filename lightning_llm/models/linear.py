"""Layers whose initialisation is decided where the architecture is known."""

from __future__ import annotations

from torch import nn


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
