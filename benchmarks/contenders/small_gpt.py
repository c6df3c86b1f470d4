"""GPT-2 in a hundred lines of plain PyTorch: what a reader would write for a bare loop.

Shapes: B rows, T tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallBlock(nn.Module):
    """Attention and feed-forward layer, each normed before and added to the stream."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        heads = self.qkv(self.ln_1(x)).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, D / H)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class SmallGPT(nn.Module):
    """Learned positions, LayerNorm, GELU, biases, a tied head.

    Args:
        vocab_size: Number of ids.
        seq_len: Longest row.
        n_layers: Blocks.
        dim: Width.
        n_heads: Heads.
    """

    def __init__(
        self, *, vocab_size: int, seq_len: int, n_layers: int, dim: int, n_heads: int
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, dim), nn.Embedding(seq_len, dim)
        self.blocks = nn.ModuleList(SmallBlock(dim, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim)
        self.apply(_initialize)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of (B, T) inputs and targets, -100 ignored."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    def load_hugging_face(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a Hugging Face GPT-2, whose matrices are transposed."""
        names = {
            "tokens": "wte",
            "positions": "wpe",
            "norm": "ln_f",
            "ln_1": "ln_1",
            "ln_2": "ln_2",
            "qkv": "attn.c_attn",
            "proj": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        }
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                *place, kind, field = name.split(".")
                prefix = "transformer." + (f"h.{place[-1]}." if place else "")
                theirs = weights[f"{prefix}{names[kind]}.{field}"]
                is_matrix = kind in ("qkv", "proj", "up", "down") and field == "weight"
                parameter.copy_(theirs.T if is_matrix else theirs)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
