"""Counts the moments at which the host waits for the device, and says where in the code.

On CUDA the driver's own debug mode reports them. A CPU never waits for itself, so there the
question is which values of the run a GPU would have to be asked for: parameters, the batch and
all that is computed from them count as the device's, numbers wrapped into a tensor do not.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

# Operators whose result has a size or a Python value that only the data can tell.
_READING = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::equal",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::repeat_interleave.Tensor",
    }
)
# On the host these are no operators at all; on a device each is a copy that is waited for.
_READING_METHODS = ("tolist", "numpy", "__array__", "cpu")
_DRIVER_MESSAGE = "called a synchronizing CUDA operation"
_LIGHTNING = str(Path(lightning.__file__).parent) + os.sep
_OTHER_LIBRARIES = tuple(
    str(Path(torch.__file__).parents[1] / name) + os.sep
    for name in ("torch", "torchmetrics", "tqdm", "lightning_utilities")
)
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_OWN_FOLDER = str(Path(__file__).parent) + os.sep


class HostSync(NamedTuple):
    """What made the host wait, and the line of code that asked for it."""

    what: str
    where: str


class HostSyncCounter:
    """Counts between ``start`` and ``stop``.

    Args:
        device: The device that the model is on.
        action: Returns the name of what Lightning is doing, to say where library code waited.
    """

    def __init__(
        self, device: torch.device, action: Callable[[], str | None] = lambda: None
    ) -> None:
        self.found: Counter[HostSync] = Counter()
        self._device, self._action = device, action
        self._stack = ExitStack()
        self._mode: _ReadingMode | None = None

    @property
    def total(self) -> int:
        """Number of waits so far."""
        return self.found.total()

    def start(self, tensors: Iterable[Any] = ()) -> None:
        """Start counting.

        Args:
            tensors: What lies on the device: parameters, buffers, the state of the optimizer.
        """
        if self._device.type == "cuda":
            self._stack.enter_context(_driver_reports(self._record))
            return
        self._mode = _ReadingMode(self._record, self._device)
        self._mode.add(tensors)
        self._stack.enter_context(_patched_methods(self._mode))
        self._stack.enter_context(self._mode)

    def on_device(self, tensors: Any) -> None:
        """Count these tensors, nested in lists and mappings, as the device's from now on."""
        if self._mode is not None:
            self._mode.add(tree_leaves(tensors))

    def stop(self) -> None:
        """Stop counting; a second call does nothing."""
        self._stack.close()
        self._mode = None

    def _record(self, what: str) -> None:
        self.found[HostSync(what, _place(self._action()))] += 1


class _ReadingMode(TorchDispatchMode):
    """Follows the device's tensors through a run, and reports what reads their values."""

    def __init__(self, record: Callable[[str], None], device: torch.device) -> None:
        super().__init__()
        self._record, self._on_cpu = record, device.type == "cpu"
        self._known = WeakTensorKeyDictionary()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled code run as it does without this mode."""
        return True

    def add(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._known[tensor] = True

    def holds(self, value: Any) -> bool:
        """Whether a value would have to be fetched from the device."""
        if not isinstance(value, Tensor):
            return False
        if not self._on_cpu:
            return value.device.type != "cpu"
        # What compiled code returns is known by its gradient alone.
        return value.requires_grad or value in self._known

    def report(self, what: str) -> None:
        self._record(what)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tree_leaves((args, kwargs))
        concerned = any(self.holds(value) for value in inputs)
        result = func(*args, **kwargs)
        if concerned:
            if self._reads(func.name(), inputs, kwargs):
                self._record(_spoken(func.name()))
            elif self._on_cpu:
                self.add(tree_leaves(result))
        return result

    def _reads(self, name: str, inputs: list[Any], kwargs: dict[str, Any]) -> bool:
        if name in _READING:
            return True
        if name.startswith("aten::index.") or name.startswith("aten::index_put"):
            return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in inputs[1:])
        if self._on_cpu or kwargs.get("non_blocking"):
            return False
        if name == "aten::_to_copy":
            target = kwargs.get("device")
            return target is not None and torch.device(target).type == "cpu"
        # copy_(self, source, non_blocking=False)
        return name == "aten::copy_" and inputs[0].device.type == "cpu" and inputs[2:3] != [True]


@contextmanager
def _patched_methods(mode: _ReadingMode) -> Iterator[None]:
    """Report reading methods of the device's tensors, which are no operators on a CPU."""
    if not mode._on_cpu:
        yield
        return
    inside = False

    def reporting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            outermost, inside = not inside, True  # one may be written with another
            try:
                if outermost and mode.holds(tensor):
                    mode.report(f"{name}()")
                return method(tensor, *args, **kwargs)
            finally:
                inside = not outermost

        return call

    kept = {name: vars(Tensor).get(name) for name in _READING_METHODS}
    for name in _READING_METHODS:
        setattr(Tensor, name, reporting(name, getattr(Tensor, name)))
    try:
        yield
    finally:
        for name, method in kept.items():
            if method is None:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


@contextmanager
def _driver_reports(record: Callable[[str], None]) -> Iterator[None]:
    """Have CUDA warn of each synchronizing call, and count the warnings instead of showing them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def count(message: Any, *args: Any, **kwargs: Any) -> None:
            if _DRIVER_MESSAGE in str(message):
                record("synchronizing call")
            else:
                show(message, *args, **kwargs)

        warnings.filterwarnings("always", message=f".*{_DRIVER_MESSAGE}")
        warnings.showwarning = count  # type: ignore[assignment]
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _spoken(operator: str) -> str:
    name = operator.removeprefix("aten::").partition(".")[0]
    return {
        "_local_scalar_dense": "item()",
        "is_nonzero": "bool()",
        "index": "indexing with a mask",
        "index_put": "assignment to a mask",
        "index_put_": "assignment to a mask",
        "_to_copy": "copy to the host",
        "copy_": "copy to the host",
    }.get(name, name)


def _place(action: str | None) -> str:
    """The innermost line of code that is not a library's, else what Lightning was doing."""
    library: str | None = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OWN_FOLDER):
            if frame.f_code.co_name == "examine":
                break  # what follows called the examination and is no part of the run
        elif name.startswith(_LIGHTNING):
            library = library or _line(frame)
        elif not _is_elsewhere(name):
            return _line(frame)
        frame = frame.f_back
    return " in ".join(filter(None, (library, action))) or "unknown place"


def _is_elsewhere(file: str) -> bool:
    standard = file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file
    return standard or file.startswith(("<", *_OTHER_LIBRARIES))


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


__all__ = ["HostSync", "HostSyncCounter"]
