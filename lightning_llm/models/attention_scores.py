"""Attention with other scores than the scaled dot product.

Shapes: B batch, T new tokens, S all tokens, H query heads, G key/value heads, R = H / G query
heads per key head, Dh head width, C query rows of a chunk.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_llm.models.attention import Attention
from lightning_llm.models.config import TransformerConfig

_INITIAL_SCALE = 10.0
_MAX_SCALE = 100.0
_CHUNK_ELEMENTS = 1 << 24  # alive at once: 64 MiB in float32


class CosineAttention(Attention):
    """Scores are cosines times a learned scale per head (Swin v2, arXiv:2111.09883).

    The scale, the inverse of a temperature, starts at 10 and is at most 100. It is multiplied
    into the queries, so that the fused attention kernels apply.
    """

    score_scale = 1.0

    def __init__(
        self, config: TransformerConfig, *, residual_std: float, value_embedding: bool = False
    ) -> None:
        super().__init__(config, residual_std=residual_std, value_embedding=value_embedding)
        self.log_scale = nn.Parameter(torch.empty(config.n_heads))  # (H,)

    def reset_parameters(self) -> None:
        """Sets the scale back; the projections have their own ``reset_parameters``."""
        nn.init.constant_(self.log_scale, math.log(_INITIAL_SCALE))

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Brings keys to length 1, and queries to the length of their head's scale."""
        scale = self.log_scale.float().clamp(max=math.log(_MAX_SCALE)).exp()
        scale = scale.view(self.n_kv_heads, -1, 1)  # (G, R, 1)
        unit_query = F.normalize(query.float(), dim=-1)
        unit_key = F.normalize(key.float(), dim=-1)
        return (unit_query * scale).to(query.dtype), unit_key.to(key.dtype)


class ChunkedAttention(Attention):
    """Attention without a fused kernel: query rows go in chunks of bounded memory.

    Subclasses have other :meth:`scores`. In training a chunk keeps its inputs only, and is computed
    again in the backward pass.
    """

    elements_per_score = 1  # alive at once for a query and a key

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`Attention.attend`."""
        batch, n_heads, n_queries, _ = query.shape
        held = key.shape[2] - n_queries
        query = query.unflatten(1, (key.shape[1], -1))  # (B, G, R, T, Dh)
        key, value = key.unsqueeze(2), value.unsqueeze(2)  # (B, G, 1, S, Dh)
        row_elements = batch * n_heads * (held + n_queries) * self.elements_per_score
        n_rows = max(1, _CHUNK_ELEMENTS // row_elements)
        chunks = []
        for first in range(0, n_queries, n_rows):
            last = min(first + n_rows, n_queries)
            seen = held + last  # keys after the last query of the chunk are never visible
            chunk_mask = None if mask is None else mask[:, :, first:last, :seen]
            arguments = (
                query[..., first:last, :],
                key[..., :seen, :],
                value[..., :seen, :],
                chunk_mask,
            )
            if torch.is_grad_enabled():
                chunks.append(checkpoint(self._attend_rows, *arguments, use_reentrant=False))
            else:
                chunks.append(self._attend_rows(*arguments))
        return torch.cat(chunks, dim=3).flatten(1, 2)

    def _attend_rows(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attends from the last C of S positions: (B, G, R, C, Dh)."""
        scores = self.scores(query, key)
        if mask is None:
            n_rows, n_keys = scores.shape[-2:]
            later = scores.new_ones(n_rows, n_keys, dtype=torch.bool).triu(n_keys - n_rows + 1)
            scores = scores.masked_fill(later, -torch.inf)
        else:
            heads = (self.n_kv_heads, -1) if mask.shape[1] > 1 else (1, 1)
            scores = scores + mask.unflatten(1, heads)
        weights = scores.softmax(dim=-1).to(value.dtype)
        weights = F.dropout(weights, self.dropout, self.training)
        y = weights.flatten(2, 3) @ value.squeeze(2)  # (B, G, R C, Dh), values read once
        return y.unflatten(2, query.shape[2:4])

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Float32 scores (B, G, R, C, S) of queries (B, G, R, C, Dh) and keys (B, G, 1, S, Dh)."""
        scale = self.head_dim**-0.5 if self.score_scale is None else self.score_scale
        products = query.flatten(2, 3) @ key.squeeze(2).mT  # (B, G, R C, S), keys read once
        return products.float().mul(scale).unflatten(2, query.shape[2:4])


class AdditiveAttention(ChunkedAttention):
    """Scores are ``v . tanh(q + k)`` (Bahdanau et al. 2014, arXiv:1409.0473).

    B H T S Dh / 2 hyperbolic tangents are computed, twice in training.
    """

    def __init__(
        self, config: TransformerConfig, *, residual_std: float, value_embedding: bool = False
    ) -> None:
        super().__init__(config, residual_std=residual_std, value_embedding=value_embedding)
        self.score_vector = nn.Parameter(torch.empty(self.n_heads, self.head_dim))  # (H, Dh)
        self.elements_per_score = self.head_dim

    def reset_parameters(self) -> None:
        """Draws new score vectors; the projections have their own ``reset_parameters``."""
        nn.init.normal_(self.score_vector, std=self.head_dim**-0.5)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """See :meth:`ChunkedAttention.scores`."""
        vector = self.score_vector.view(self.n_kv_heads, -1, 1, 1, self.head_dim)
        sums = query.unsqueeze(-2) + key.unsqueeze(-3)  # (B, G, R, C, S, Dh)
        return (sums.tanh() * vector).sum(dim=-1, dtype=torch.float32)


class CappedAttention(ChunkedAttention):
    """Scores are ``c * tanh(s q . k / c)`` (Gemma 2, arXiv:2408.00118)."""

    def __init__(
        self, config: TransformerConfig, *, residual_std: float, value_embedding: bool = False
    ) -> None:
        super().__init__(config, residual_std=residual_std, value_embedding=value_embedding)
        assert config.attention_softcap is not None
        self.cap = config.attention_softcap

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """See :meth:`ChunkedAttention.scores`."""
        return self.cap * torch.tanh(super().scores(query, key) / self.cap)


ATTENTIONS: dict[str, type[Attention]] = {
    "dot": Attention,
    "cosine": CosineAttention,
    "additive": AdditiveAttention,
}


def attention_class(config: TransformerConfig) -> type[Attention]:
    """The class that computes the scores a config asks for."""
    if config.attention_softcap is not None:
        return CappedAttention
    return ATTENTIONS[config.attention_score]
