"""Counts the operators that a piece of code runs."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Operators that wait for the device to learn a value.
READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item")


class OperatorCount(TorchDispatchMode):
    """Counts the operators of some names; by default those that wait for the device."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names or READS
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += func.overloadpacket.__name__ in self.names
        return func(*args, **(kwargs or {}))
