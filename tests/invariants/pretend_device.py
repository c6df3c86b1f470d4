"""Host waits, counted on a machine without an accelerator.

Some tensors are declared to lie on a device; whatever is computed from them lies there too, by
storage. Reading such a tensor on the host is what would wait for an accelerator.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result, or its shape, the host has to know.
READS = {
    f"aten::{name}"
    for name in "_local_scalar_dense is_nonzero equal nonzero masked_select _unique2 unique_dim "
    "unique_consecutive repeat_interleave.Tensor bincount allclose".split()
}
# Methods that on the CPU never reach an operator.
METHODS = {
    getattr(Tensor, name)
    for name in "tolist numpy cpu item __bool__ __int__ __float__ __index__ __array__".split()
}


def _dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """What has memory: a sparse tensor's indices and values."""
    return (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)


class PretendDevice:
    """Which storages lie on the device, and who read them: ``reads`` is emptied by the test."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self._storages: dict[int, StorageWeakRef] = {}

    def put(self, tensors: Iterable[Any]) -> None:
        """Declare that these lie on the device."""
        for tensor in tensors:
            for part in _dense_parts(tensor) if isinstance(tensor, Tensor) else ():
                reference = StorageWeakRef(part.untyped_storage())
                self._storages[reference.cdata] = reference

    def holds(self, values: Any) -> bool:
        """Whether any tensor among the values lies there."""
        return any(
            isinstance(value, Tensor) and self._lies_here(value) for value in tree_leaves(values)
        )

    def _lies_here(self, tensor: Tensor) -> bool:
        found = (self._storages.get(p.untyped_storage()._cdata) for p in _dense_parts(tensor))
        return any(reference is not None and not reference.expired() for reference in found)

    def read(self, what: str) -> None:
        """Note who did it."""
        frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack()]
        mine = [f for f in frames if "lightning" in f and "site-packages/torch/" not in f]
        self.reads.append(f"{what} at {' < '.join(reversed(mine[-3:]))}")


class Operators(TorchDispatchMode):
    """Follows tensors through operators."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = self.device.holds((args, kwargs))
        if here and (func.name() in READS or _has_bool_index(func, args)):
            self.device.read(func.name())
        result = func(*args, **kwargs)
        if here:
            self.device.put(tree_leaves(result))
        return result


class Methods(TorchFunctionMode):
    """Sees the reads that the CPU does without an operator."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # By name: `x.to(y.device)` stays on the pretended device.
        given = (*args[1:], *(kwargs or {}).values())
        is_copy = func is Tensor.to and any(isinstance(a, str) and a == "cpu" for a in given)
        if not (func in METHODS or is_copy) or not self.device.holds(args[0]):
            return func(*args, **(kwargs or {}))
        self.device.read(getattr(func, "__name__", str(func)))
        kept, self.device.reads = self.device.reads, []  # not a second time by the operator
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self.device.reads = kept
        return result.clone() if isinstance(result, Tensor) and result is args[0] else result


def _has_bool_index(func: Any, args: Any) -> bool:
    return func.name() in ("aten::index.Tensor", "aten::index_put_") and any(
        isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
    )
