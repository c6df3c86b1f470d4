"""The norm layers a config can ask for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_llm.models.config import TransformerConfig


class RMSNorm(nn.RMSNorm):
    """``x / sqrt(mean(x ** 2) + eps) * weight`` (Zhang and Sennrich 2019, arXiv:1910.07467).

    Computed in float32, returned in the dtype of the input. Under autocast the two differ in
    dtype where the input comes from a matrix product; the fused kernel wants them alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Norms the last dimension."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


def build_norm(config: TransformerConfig) -> nn.Module:
    """A norm over the model width."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.dim, eps=config.norm_eps)
    return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.norm_bias)
