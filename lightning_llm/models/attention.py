"""Causal self-attention with grouped keys and values.

Shapes: B batch, T new tokens, S all tokens, D model width, H query heads, G key/value heads,
R = H / G query heads per key head, Dh head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_llm.models.blocked_attention import blocked_attention, blocks_are_faster
from lightning_llm.models.cache import LayerCache
from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.context import ContextShard
from lightning_llm.models.linear import Linear
from lightning_llm.models.mixing import ValueMix
from lightning_llm.models.norms import RMSNorm
from lightning_llm.models.positions import rotate


class Attention(nn.Module):
    """Scaled dot-product attention; queries, keys and values come from one matrix product.

    The rows of ``qkv.weight`` are grouped by key/value head: for each, its R query heads, then
    its key head, then its value head, Dh rows each. A split of the rows between devices is then
    a split of the heads.
    """

    score_scale: float | None = None  # of query-key products; None: 1 / sqrt(Dh)
    context: ContextShard | None = None  # where ranks share the sequences

    def __init__(
        self, config: TransformerConfig, *, residual_std: float, value_embedding: bool = False
    ) -> None:
        super().__init__()
        assert config.n_kv_heads is not None
        assert config.head_dim is not None
        assert config.attention_out_bias is not None
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        if config.attention_scale is not None:
            self.score_scale = config.attention_scale
        rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.qkv = Linear(config.dim, rows, bias=config.attention_bias, init_std=config.init_std)
        self.out = Linear(
            config.n_heads * config.head_dim,
            config.dim,
            bias=config.attention_out_bias,
            init_std=residual_std,
        )
        self.value_mix: ValueMix | None = ValueMix() if value_embedding else None
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        self.norms_all_heads = config.qk_norm_scope == "all_heads"
        if config.qk_norm:
            heads = (config.n_heads, config.n_kv_heads) if self.norms_all_heads else (1, 1)
            self.q_norm, self.k_norm = (
                RMSNorm(count * config.head_dim, eps=config.norm_eps) for count in heads
            )

    def forward(
        self,
        x: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        token_values: Tensor | None = None,
    ) -> Tensor:
        """Maps (B, T, D) to (B, T, D).

        Args:
            x: Normed hidden states.
            cos: Rotation table (B or 1, T, 1, 1, half the rotated components); None: no
                rotation.
            sin: As ``cos``.
            mask: Additive, (B or 1, H or 1, T, S); None: causal.
            cache: Keys and values of earlier tokens, which the new ones are added to.
            token_values: (B, T, G * Dh), mixed into the values of a layer that has a
                :class:`ValueMix`.
        """
        batch, length, _ = x.shape
        per_group = self.n_heads // self.n_kv_heads
        grouped = self.qkv(x).view(batch, length, -1, per_group + 2, self.head_dim)
        query, key, value = grouped.split((per_group, 1, 1), dim=3)  # (B, T, G, R or 1, Dh)
        query, key = self.normalize(query, key)
        if self.value_mix is not None and token_values is not None:
            value = self.value_mix(value, token_values.view_as(value))
        if cos is not None and sin is not None:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key, value = (y.flatten(2, 3).transpose(1, 2) for y in (query, key, value))
        if cache is not None:
            key, value = cache.append(key, value)
        if self.context is None:
            y = self.attend(query, key, value, mask)
        else:
            y = self.context.attend(self.attend, query, key, value, mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Norms heads (B, T, G, R or 1, Dh) before they are rotated."""
        if self.q_norm is None or self.k_norm is None:
            return query, key
        if self.norms_all_heads:
            normed_query, normed_key = self.q_norm(query.flatten(2)), self.k_norm(key.flatten(2))
            return normed_query.view(query.shape), normed_key.view(key.shape)
        return self.q_norm(query), self.k_norm(key)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax-weighted means of the values.

        Args:
            query: (B, H, T, Dh).
            key: (B, G, S, Dh); the last query is at the last key's position.
            value: (B, G, S, Dh).
            mask: As in ``forward``.

        Returns:
            (B, H, T, Dh).
        """
        n_queries, n_keys = query.shape[2], key.shape[2]
        grouped = query.shape[1] != key.shape[1]
        if grouped and n_queries == 1:
            return self._attend_folded(query, key, value, mask)
        if not (self.dropout and self.training) and blocks_are_faster(query, key):
            return blocked_attention(query, key, value, mask, scale=self.score_scale)
        if grouped and mask is not None and query.is_cuda:
            # The kernel that takes masks on most GPUs knows no grouped heads; asking for both
            # would fall back to one that keeps all scores (github.com/pytorch/pytorch/pull/191085).
            per_group = self.n_heads // self.n_kv_heads
            key, value = (y.repeat_interleave(per_group, dim=1) for y in (key, value))
            grouped = False
        if mask is None and self.context is not None and n_queries < n_keys:
            mask = self.context.causal(n_queries, n_keys)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            # Without a mask either all tokens are new, or there is one that sees everything.
            is_causal=mask is None and n_queries == n_keys,
            scale=self.score_scale,
            enable_gqa=grouped,
        )

    def _attend_folded(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """One new token per sequence: query heads that share keys become rows of one head.

        Keys are then read once per group, and every kernel can do it; on a CPU in bfloat16 it
        is three to six times as fast.
        """
        batch, heads, _, width = query.shape
        if mask is not None and mask.shape[1] > 1:  # ALiBi
            mask = mask.view(mask.shape[0], key.shape[1], -1, mask.shape[3])
        y = F.scaled_dot_product_attention(
            query.reshape(batch, key.shape[1], -1, width),  # (B, G, H / G, Dh)
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.score_scale,
        )
        return y.reshape(batch, heads, 1, width)
