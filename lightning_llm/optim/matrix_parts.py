"""The matrices inside a weight: experts of a stack, parts of a fused projection, shards.

Legend: H query heads, G key/value heads, Dh head width, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def split_parts(weight: Tensor, qkv_heads: tuple[int, int] | None) -> list[Tensor]:
    """Splits a weight into the matrices that act on their own.

    Args:
        weight: (R, C), or (K, R, C) for K matrices.
        qkv_heads: H and G where the rows are grouped by key/value head, each group being its H / G
            query heads, its key head and its value head.

    Returns:
        The matrices; query (H * Dh, D), key and value (G * Dh, D) for a fused projection.
    """
    if weight.ndim == 3:
        return list(weight.unbind())
    if qkv_heads is None:
        return [weight]
    n_heads, n_kv_heads = qkv_heads
    per_group = n_heads // n_kv_heads
    grouped = weight.view(n_kv_heads, per_group + 2, -1, weight.shape[1])  # (G, H/G + 2, Dh, D)
    return [part.flatten(0, 2) for part in grouped.split((per_group, 1, 1), dim=1)]


def join_parts(parts: list[Tensor], shape: torch.Size, qkv_heads: tuple[int, int] | None) -> Tensor:
    """Inverse of :func:`split_parts` for a weight of ``shape``."""
    if len(shape) == 3:
        return torch.stack(parts)
    if qkv_heads is None:
        return parts[0]
    n_kv_heads, columns = qkv_heads[1], shape[1]
    head_dim = parts[1].shape[0] // n_kv_heads
    grouped = [part.view(n_kv_heads, -1, head_dim, columns) for part in parts]
    return torch.cat(grouped, dim=1).view(shape)


def whole(tensor: Any) -> Tensor:
    """A sharded tensor gathered on every rank; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_shard(tensor: Tensor, like: Any) -> Tensor:
    """This rank's shard of a tensor that every rank holds whole, laid out as ``like``."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    replicated = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=like.placements)
