"""One layer of the Transformer.

Shapes: B batch, T new tokens, S all tokens, D model width.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_llm.models.attention_scores import attention_class
from lightning_llm.models.cache import LayerCache
from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.feed_forward import FeedForward, GatedFeedForward
from lightning_llm.models.mixing import ResidualMix
from lightning_llm.models.moe import MixtureOfExperts
from lightning_llm.models.norms import build_norm


class Block(nn.Module):
    """Attention and feed-forward layer, each normed and added to the residual stream.

    All blocks of a model are alike and take tensors only, so that they can be compiled,
    checkpointed and sharded one by one.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        residual_std = _residual_std(config, layer)
        attention = attention_class(config)
        self.parallel = config.parallel_residual
        self.dropout = config.dropout
        self.residual_mix = ResidualMix() if config.residual_scalars else None
        before, after = config.norm_placement != "post", config.norm_placement != "pre"
        self.attention_norm = build_norm(config) if before else None
        self.attention = attention(
            config,
            residual_std=residual_std,
            value_embedding=config.has_value_embedding(layer),
        )
        self.attention_post_norm = build_norm(config) if after else None
        self.mlp_norm = build_norm(config) if before and not config.shared_norm else None
        self.mlp: FeedForward | MixtureOfExperts
        if config.n_experts:
            self.mlp = MixtureOfExperts(config, residual_std=residual_std)
        elif config.gated:
            self.mlp = GatedFeedForward(config, residual_std=residual_std)
        else:
            self.mlp = FeedForward(config, residual_std=residual_std)
        self.mlp_post_norm = build_norm(config) if after else None

    def forward(
        self,
        x: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        start: Tensor | None = None,
        token_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the new residual stream (B, T, D) and the router's loss, None if dense.

        Args:
            x: (B, T, D).
            cos: As ``sin``, ``mask`` and ``cache``: see
                :meth:`~lightning_llm.models.attention.Attention.forward`.
            sin: See ``cos``.
            mask: See ``cos``.
            cache: See ``cos``.
            start: (B, T, D), what the residual stream of the first block was, for
                :class:`~lightning_llm.models.mixing.ResidualMix`.
            token_values: See ``cos``.
        """
        if self.residual_mix is not None and start is not None:
            x = self.residual_mix(x, start)
        normed = _apply(self.attention_norm, x)
        attended = self.attention(normed, cos, sin, mask, cache, token_values)
        attended = self._drop(_apply(self.attention_post_norm, attended))
        if self.parallel:
            if self.mlp_norm is not None:
                normed = self.mlp_norm(x)
            x = x + attended
        else:
            x = x + attended
            normed = _apply(self.mlp_norm, x)
        router_loss = None
        if isinstance(self.mlp, MixtureOfExperts):
            y, router_loss = self.mlp(normed)
        else:
            y = self.mlp(normed)
        return x + self._drop(_apply(self.mlp_post_norm, y)), router_loss

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def _apply(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _residual_std(config: TransformerConfig, layer: int) -> float:
    """Initial spread of the projections that end the branches of layer ``layer``."""
    if config.initializer == "zero_residual":
        return 0.0
    depth = config.n_layers if config.initializer == "gpt2" else layer + 1
    return config.init_std / math.sqrt(2 * depth)
