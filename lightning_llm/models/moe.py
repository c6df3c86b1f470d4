"""A mixture of feed-forward experts with a top-k router.

Shapes: N tokens, D model width, F inner width, E experts, K experts per token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.feed_forward import ACTIVATIONS
from lightning_llm.models.grouped_linear import grouped_linear
from lightning_llm.models.linear import Linear, own_part
from lightning_llm.models.precision import compute_dtype


class MixtureOfExperts(nn.Module):
    """Sends each token to K of E experts and mixes what they return (arXiv:2401.04088).

    No token is dropped, and nothing is read back to the host: the N K token copies are sorted
    by expert and multiplied group by group (see :mod:`~lightning_llm.models.grouped_linear`).
    The price over a dense layer is the sort and two passes over (N K, D).
    """

    def __init__(self, config: TransformerConfig, *, residual_std: float) -> None:
        super().__init__()
        self.n_experts_per_token = config.n_experts_per_token
        self.normalize_weights = config.normalize_expert_weights
        self.router = Linear(config.dim, config.n_experts, bias=False, init_std=config.init_std)
        self.experts = Experts(config, residual_std=residual_std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (..., D) to (..., D), and gives the load-balancing loss, a float32 scalar."""
        tokens = x.flatten(0, -2)  # (N, D)
        scores = F.linear(tokens, own_part(self.router.weight, summed=True))
        probabilities = scores.softmax(dim=-1, dtype=torch.float32)  # (N, E)
        weights, chosen = probabilities.topk(self.n_experts_per_token, dim=-1)  # (N, K)
        if self.normalize_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        mixed, ends = self.experts(tokens, weights, chosen)
        return mixed.view_as(x), load_balancing_loss(probabilities, ends)


def load_balancing_loss(probabilities: Tensor, ends: Tensor) -> Tensor:
    """E times the sum over experts of (token copies received / N) * (mean probability).

    K when balanced, E K when one expert gets everything (Fedus et al. 2021, arXiv:2101.03961,
    equation 4, for K copies of each token).

    Args:
        probabilities: (N, E) float32.
        ends: (E,) running total of the token copies each expert receives.
    """
    n_tokens, n_experts = probabilities.shape
    received = ends.diff(prepend=ends.new_zeros(1)).float() / n_tokens
    return n_experts * torch.dot(received, probabilities.mean(dim=0))


class Experts(nn.Module):
    """The weights of all experts, stacked."""

    def __init__(self, config: TransformerConfig, *, residual_std: float) -> None:
        super().__init__()
        assert config.hidden_dim is not None
        n, dim, hidden = config.n_experts, config.dim, config.hidden_dim
        self.activation = ACTIVATIONS[config.mlp]
        self.init_std = config.init_std
        self.residual_std = residual_std
        self.up = nn.Parameter(torch.empty(n, hidden, dim))  # (E, F, D)
        self.down = nn.Parameter(torch.empty(n, dim, hidden))  # (E, D, F)
        self.gate: nn.Parameter | None = None
        if config.gated:
            self.gate = nn.Parameter(torch.empty(n, hidden, dim))  # (E, F, D)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        nn.init.normal_(self.up, std=self.init_std)
        nn.init.normal_(self.down, std=self.residual_std)
        if self.gate is not None:
            nn.init.normal_(self.gate, std=self.init_std)

    def forward(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Runs each token through its chosen experts.

        Args:
            tokens: (N, D).
            weights: (N, K) float32, of the experts' outputs.
            chosen: (N, K) int64.

        Returns:
            (N, D) weighted sums, and (E,) int32 running total of token copies per expert.
        """
        n_tokens, n_chosen = chosen.shape
        flat = chosen.flatten()
        order = flat.argsort(stable=True)  # (N K,) copies by expert, then by token
        experts = torch.arange(self.up.shape[0], device=flat.device)
        ends = torch.searchsorted(flat[order], experts, right=True, out_int32=True)
        dtype = compute_dtype(tokens)
        x = tokens.to(dtype)[order // n_chosen]  # (N K, D)
        hidden = grouped_linear(x, own_part(self.up).to(dtype), ends)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            gate = own_part(self.gate).to(dtype)
            hidden = self.activation(grouped_linear(x, gate, ends)) * hidden
        y = grouped_linear(hidden, own_part(self.down).to(dtype), ends)
        # Back to (N, K, D) by scattering: its gradient is a gather, free of atomic additions.
        y = torch.empty_like(y).index_copy(0, order, y).view(n_tokens, n_chosen, -1)
        return (y * weights.unsqueeze(-1)).sum(dim=1).to(tokens.dtype), ends
