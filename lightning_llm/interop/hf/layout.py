"""How tensors of ours are stored in a Hugging Face checkpoint, and back.

A family's weight table is a list of :class:`TensorMap`. Each names one or more keys of our state
dict, the key or keys that hold the same numbers in the checkpoint, and the two functions between
them. Both work on one row at a time, so a checkpoint is read and written without a second copy of
the model.

Letters in shapes: D model width, H query heads, G key-value heads, Dh head width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorMap:
    """One row of a weight table.

    Args:
        ours: Keys in :class:`~lightning_llm.models.Transformer`'s state dict; empty if we have no
            such tensor and the checkpoint needs a constant (a bias of zeros).
        theirs: Keys in the checkpoint.
        to_hf: Our tensors, in the order of ``ours``, to theirs, in the order of ``theirs``.
        from_hf: Their tensors to ours, in the same orders.
        shape: Of the constant; empty where there is none.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_hf: Callable[..., tuple[Tensor, ...]]
    from_hf: Callable[..., tuple[Tensor, ...]]
    shape: tuple[int, ...] = ()


def same(ours: str, theirs: str) -> TensorMap:
    """The same numbers in the same order under another name."""
    return TensorMap((ours,), (theirs,), _as_it_is, _as_it_is)


def transposed(ours: str, theirs: str) -> TensorMap:
    """A matrix that GPT-2's ``Conv1D`` stores as (in, out)."""
    return TensorMap((ours,), (theirs,), _transpose, _transpose)


def one_less(ours: str, theirs: str) -> TensorMap:
    """The weight of a norm that multiplies with ``1 + theirs`` (Gemma).

    The way out is exact for weights from 1/2 on, so an exported model comes back bit by bit. The
    way in rounds ``1 + theirs`` once, to the precision of the model. That keeps every bit of a
    bfloat16 checkpoint (down to 2 ** -16) in a float32 model, and not in a bfloat16 one, which is
    why the sum is returned in float32 at least.
    """

    def to_hf(weight: Tensor) -> tuple[Tensor]:
        return ((_at_least_float32(weight) - 1).to(weight.dtype),)

    def from_hf(weight: Tensor) -> tuple[Tensor]:
        return (_at_least_float32(weight) + 1,)

    return TensorMap((ours,), (theirs,), to_hf, from_hf)


def zeros_in_theirs(theirs: str, *shape: int) -> TensorMap:
    """A bias the architecture always has and our model does not: zeros leave the logits equal."""
    return TensorMap((), (theirs,), _unused, _unused, shape)


def separate_qkv(
    ours: str, theirs: tuple[str, str, str], n_kv_heads: int, head_dim: int
) -> TensorMap:
    """Our fused projection against separate query, key and value projections (Llama and kin)."""
    return TensorMap(
        (ours,),
        theirs,
        lambda fused: split_qkv(fused, n_kv_heads, head_dim),
        lambda query, key, value: (fuse_qkv(query, key, value, n_kv_heads, head_dim),),
    )


def stacked_qkv(
    ours: str, theirs: str, n_kv_heads: int, head_dim: int, *, transpose: bool = False
) -> TensorMap:
    """Our fused projection against one matrix ``[query; key; value]`` (GPT-2's ``c_attn``)."""

    def to_hf(fused: Tensor) -> tuple[Tensor]:
        stacked = torch.cat(split_qkv(fused, n_kv_heads, head_dim))
        return (stacked.t() if transpose else stacked,)

    def from_hf(stacked: Tensor) -> tuple[Tensor]:
        rows = stacked.t() if transpose else stacked
        n_heads = rows.shape[0] // head_dim - 2 * n_kv_heads
        sizes = [n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim]
        query, key, value = rows.split(sizes)
        return (fuse_qkv(query, key, value, n_kv_heads, head_dim),)

    return TensorMap((ours,), (theirs,), to_hf, from_hf)


def stacked_rows(ours: tuple[str, ...], theirs: str) -> TensorMap:
    """Several matrices of ours of one size against one with all their rows (Phi-3's gate, up)."""
    return TensorMap(
        ours,
        (theirs,),
        lambda *matrices: (torch.cat(matrices),),
        lambda stacked: stacked.chunk(len(ours)),
    )


def per_expert(ours: str, theirs: str, n_experts: int) -> TensorMap:
    """Our stack (E, out, in) against one matrix per expert; ``theirs`` contains ``{expert}``."""
    names = tuple(theirs.format(expert=expert) for expert in range(n_experts))
    return TensorMap(
        (ours,), names, lambda stack: stack.unbind(0), lambda *matrices: (torch.stack(matrices),)
    )


def split_qkv(fused: Tensor, n_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split rows grouped by key-value head into query, key and value rows.

    Args:
        fused: ((H + 2 G) Dh,) or ((H + 2 G) Dh, D): per group its H/G query heads, key, value.
        n_kv_heads: G.
        head_dim: Dh.

    Returns:
        Query (H Dh, ...), key (G Dh, ...) and value (G Dh, ...), each contiguous.
    """
    rest = fused.shape[1:]
    groups = fused.view(n_kv_heads, -1, head_dim, *rest)  # (G, H/G + 2, Dh, ...)
    query, key, value = groups[:, :-2], groups[:, -2], groups[:, -1]
    return query.reshape(-1, *rest), key.reshape(-1, *rest), value.reshape(-1, *rest)


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, n_kv_heads: int, head_dim: int) -> Tensor:
    """Inverse of :func:`split_qkv`."""
    rest = query.shape[1:]
    parts = [part.reshape(n_kv_heads, -1, head_dim, *rest) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def _as_it_is(tensor: Tensor) -> tuple[Tensor]:
    return (tensor,)


def _transpose(matrix: Tensor) -> tuple[Tensor]:
    return (matrix.t(),)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _unused(*_: Tensor) -> Any:
    raise AssertionError("a constant has no source tensor")
