"""Watches operators run: what memory outlives a call, and what goes to other ranks."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_grouped_mm", "looped_linear"}
_ATTENTION = "_scaled_dot_product"
_COLLECTIVES = {
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_reduce": "all_reduce",
}


class Sent(NamedTuple):
    """A call to other ranks: bytes of the larger of what goes in and what comes out."""

    operation: str
    bytes: int
    group: str  # name of the process group


class Living(TorchDispatchMode):
    """Notes the memory that operators return, to see which of it outlives the call.

    Args:
        known: Tensors whose memory does not count.

    Attributes:
        sent: Collectives of split layers and sequences, in order.
    """

    def __init__(self, known: list[Any]) -> None:
        super().__init__()
        self.known = [local(t).untyped_storage() for t in known if isinstance(t, Tensor)]
        self.seen: dict[int, tuple[weakref.ref[Any], torch.Size]] = {}
        self.touched: set[int] = set()
        self.sent: list[Sent] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor | AsyncCollectiveTensor) for kind in types):
            return NotImplemented  # first what it does with the tensors of this rank
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        for tensor in tensors:
            self._note(tensor)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        name = func.overloadpacket.__name__
        if name in _PRODUCTS or name.startswith(_ATTENTION):
            self.touched |= {id(tensor.untyped_storage()) for tensor in tensors + given}
        if func.namespace == "_c10d_functional" and name in _COLLECTIVES:
            size = max(tensor.nbytes for tensor in tensors + given)
            self.sent.append(Sent(_COLLECTIVES[name], size, args[-1]))
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = cast(Any, tensor.untyped_storage())
        entry = self.seen.get(id(storage))
        if entry is None or entry[0]() is None:
            self.touched.discard(id(storage))  # of another, which had this address
            self.seen[id(storage)] = (weakref.ref(storage), tensor.shape)

    def storages(self, *, touched_only: bool) -> list[tuple[Any, torch.Size]]:
        """Memory still referenced, with the shape it was made in.

        With ``touched_only``: what products and attention read or wrote. Compiled code computes
        the rest again from it.
        """
        known = {id(storage) for storage in self.known}
        found = []
        for key, (reference, shape) in self.seen.items():
            storage = reference()
            if storage is None or key in known or (touched_only and key not in self.touched):
                continue
            found.append((storage, shape))
        return found


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
