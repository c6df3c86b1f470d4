"""The norm layers a config can ask for."""

from __future__ import annotations

from torch import nn

from lightning_llm.models.config import TransformerConfig


def build_norm(config: TransformerConfig) -> nn.Module:
    """A norm over the model width.

    Both compute statistics in float32 whatever the dtype of the input, and return that dtype.
    """
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.dim, eps=config.norm_eps)
    return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.norm_bias)
