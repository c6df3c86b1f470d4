"""Where a token is: rotary and sinusoidal tables, ALiBi slopes.

Shapes: B batch, T sequence, R rotated components of a head, D model width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.rope_scaling import rope_frequencies

Rope = tuple[Tensor, Tensor]


class PositionTable:
    """Cosines and sines of ``position * frequency``, computed once per device.

    Kept in float32 and outside the module's buffers, so that neither a bf16 default, nor
    ``module.to(bfloat16)``, nor the meta device touches them.

    Args:
        frequencies: (F,) float32, radians per position.
        scale: Factor on cosine and sine.
        max_length: Number of positions.
    """

    def __init__(self, frequencies: Tensor, scale: float, max_length: int) -> None:
        self.frequencies = frequencies
        self.scale = scale
        self.max_length = max_length
        self._cos_sin: Rope | None = None

    def slice(self, start: int, length: int, device: torch.device) -> Rope:
        """Cosine and sine (T, F) of the positions ``start`` to ``start + length - 1``."""
        end = start + length
        table = self._cos_sin
        if table is None or table[0].device != device or table[0].shape[0] < end:
            size = min(self.max_length, 1 << (end - 1).bit_length())  # few rebuilds as it grows
            # A table first built during validation must also serve training.
            with torch.inference_mode(False):
                positions = torch.arange(max(size, end), device=device)
                table = self._cos_sin = self.lookup(positions)
        return table[0][start:end], table[1][start:end]

    def lookup(self, positions: Tensor) -> Rope:
        """Cosine and sine (..., F) of integer positions of any shape."""
        if self.frequencies.device != positions.device:
            with torch.inference_mode(False):
                self.frequencies = self.frequencies.to(positions.device)
        angles = positions.unsqueeze(-1).float() * self.frequencies
        return angles.cos() * self.scale, angles.sin() * self.scale


def rotary_tables(config: TransformerConfig) -> dict[str, PositionTable]:
    """Tables of the rotation angles, by what ``config.layer_rotation`` calls them; F = R / 2."""
    if config.positions != "rope":
        return {}
    tables = {"global": rotary_table(config, config.rope_theta, config.rope_scaling)}
    if config.sliding_rope_theta is not None:
        tables["local"] = rotary_table(config, config.sliding_rope_theta, None)
    return tables


def rotary_table(
    config: TransformerConfig, theta: float, scaling: dict[str, Any] | None
) -> PositionTable:
    """The table of the rotation angles of one RoPE; F = R / 2."""
    frequencies, factor = rope_frequencies(config.rotary_dim, theta, scaling)
    return PositionTable(frequencies, factor, config.max_seq_len)


def sinusoidal_table(config: TransformerConfig) -> PositionTable:
    """The table of Vaswani et al. 2017 (wavelengths up to 10,000 * 2 pi); F = D / 2."""
    frequencies, _ = rope_frequencies(config.dim, 10000.0, None)
    return PositionTable(frequencies, 1.0, config.max_seq_len)


def sinusoidal_embedding(cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaves to (..., D): ``PE[2i] = sin``, ``PE[2i + 1] = cos``."""
    return torch.stack((sin, cos), dim=-1).flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates component pairs ``(i, i + R / 2)`` of each head.

    Args:
        x: (B, T, ..., Dh), any dtype; components from R on pass through.
        cos: Float32, (T or B x T, broadcast over the head dimensions, R / 2).
        sin: As ``cos``.

    Returns:
        As ``x``, in its dtype; computed in float32.
    """
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    parts = [
        (first * cos - second * sin).to(x.dtype),
        (second * cos + first * sin).to(x.dtype),
    ]
    if x.shape[-1] > 2 * half:
        parts.append(x[..., 2 * half :])
    return torch.cat(parts, dim=-1)


def alibi_slopes(n_heads: int) -> list[float]:
    """Slope of each head's linear distance penalty (Press et al. 2021, arXiv:2108.12409).

    A geometric sequence from ``2 ** (-8 / n)`` for the largest power of two ``n <= n_heads``;
    the remaining heads take every other slope of the sequence for ``2 n``.
    """
    n = 1 << int(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]
    between = [2.0 ** (-4.0 * (2 * i + 1) / n) for i in range(n_heads - n)]
    return slopes + between
