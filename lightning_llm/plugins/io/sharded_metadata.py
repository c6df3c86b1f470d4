"""Reads the index of a sharded checkpoint without running code from it.

``torch.distributed.checkpoint`` keeps its index, ``.metadata``, as a pickle. A pickle calls what it
names and sets attributes on what comes back. Here every name stands for a record that only keeps
what it is given; the real index is built afterwards from those records, field by field, where each
value is of the plain type that belongs there. The bytes are looked through before, so that a short
file cannot ask for much memory.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from typing_extensions import override

from lightning_llm.plugins.io.sealed_file import DamagedCheckpointError

METADATA_FILE = ".metadata"
MAX_INDEX_BYTES = 1 << 30

_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
_NAMES = {
    _METADATA: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    _FILESYSTEM: {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},  # looks a name up among torch's layouts
    "collections": {"OrderedDict"},
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
}
# What pickling an index needs, of any protocol that torch has used.
_OPCODES = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 INT "
    "LONG BINUNICODE SHORT_BINUNICODE UNICODE EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GET BINGET "
    "LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ".split()
)


def read_metadata(path: Path) -> Metadata:
    """Read the index of a checkpoint folder.

    Raises:
        DamagedCheckpointError: It is no such index, names anything that an index does not need, or
            refers to anything outside its folder.
    """
    file = path / METADATA_FILE
    size = file.stat().st_size
    if size > MAX_INDEX_BYTES:
        raise DamagedCheckpointError(
            f"{file} has {size:,} bytes; an index has at most {MAX_INDEX_BYTES:,}"
        )
    data = file.read_bytes()
    try:
        _check_opcodes(data)
        record = _RecordUnpickler(io.BytesIO(data)).load()
    except _BROKEN as error:
        raise DamagedCheckpointError(f"{file} is no index of a checkpoint: {error}") from error
    try:
        metadata = _as_metadata(record)
    except _BROKEN as error:
        raise DamagedCheckpointError(
            f"{file} is no index of a checkpoint: {type(error).__name__}: {error}"
        ) from error
    sizes = {item.name: item.stat().st_size for item in path.iterdir() if item.is_file()}
    for stored in metadata.storage_data.values():
        if stored.relative_path not in sizes:
            raise DamagedCheckpointError(
                f"{file} refers to {stored.relative_path!r}, which is not in the folder"
            )
        if stored.offset + stored.length > sizes[stored.relative_path]:
            raise DamagedCheckpointError(
                f"{file} refers to bytes {stored.offset} to {stored.offset + stored.length} of "
                f"{stored.relative_path!r}, which has {sizes[stored.relative_path]}"
            )
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise DamagedCheckpointError(
                f"{path} holds {name!r} as a pickled object, which could run code when it is "
                f"loaded; only tensors are read"
            )
    return metadata


class TensorReader(FileSystemReader):
    """Reads the tensors of a folder whose index was read by `read_metadata`."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index at hand; the file is not read again."""
        if self._metadata.storage_meta is None:
            self._metadata.storage_meta = StorageMeta()
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


class TensorPlanner(DefaultLoadPlanner):
    """Loads tensors in place; anything pickled is refused."""

    @override
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Refuse.

        Raises:
            DamagedCheckpointError: Always.
        """
        raise DamagedCheckpointError(f"{read_item.dest_index.fqn} is no tensor in the checkpoint")


_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def _check_opcodes(data: bytes) -> None:
    """Refuse instructions that an index does not need, and places in the memo without end.

    The memo is an array: one instruction of five bytes can make it billions of places long.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), 1):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it has the instruction {opcode.name}")
        if "PUT" in opcode.name and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"it asks for {argument} places after {count} values")


class _Record:
    """An object of the pickle: the name of its class, what it was called with, and its state."""

    name: str

    def __new__(cls, *args: Any) -> _Record:
        record = object.__new__(cls)
        record.__dict__.update(args=args, state=None)
        return record

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Refuse items: only an OrderedDict has some, and it is read as a dict."""
        raise TypeError(f"{self.name} takes no items")


class _RecordUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._kinds: dict[str, type] = {}

    @override
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype | torch.layout):
                return found
        if module == "builtins" and name in ("set", "frozenset", "list", "dict", "tuple"):
            return {"set": set, "frozenset": frozenset, "list": list, "dict": dict}.get(name, tuple)
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        if name == "OrderedDict":
            return dict
        if name not in self._kinds:
            self._kinds[name] = type(name, (_Record,), {"name": name})
        return self._kinds[name]


# ---------------------------------------------------------------------- from records to the index


def _as_metadata(record: Any) -> Metadata:
    state = _fields(record, "Metadata")
    storage = state.get("storage_data")
    if storage is None:
        raise TypeError("it has no storage_data")
    return Metadata(
        state_dict_metadata={
            _plain(name, str): _as_entry(entry)
            for name, entry in _plain(state["state_dict_metadata"], dict).items()
        },
        planner_data=_as_planner_data(state.get("planner_data")),
        storage_data={
            _as_index(key): _as_storage(value) for key, value in _plain(storage, dict).items()
        },
        storage_meta=StorageMeta(),
        version=_optional(state.get("version"), str),
    )


def _as_entry(record: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if getattr(record, "name", None) == "BytesStorageMetadata":
        return BytesStorageMetadata()
    state = _fields(record, "TensorStorageMetadata")
    chunks = [_fields(chunk, "ChunkStorageMetadata") for chunk in _plain(state["chunks"], list)]
    return TensorStorageMetadata(
        properties=_as_properties(state["properties"]),
        size=_as_size(state["size"]),
        chunks=[ChunkStorageMetadata(_as_size(c["offsets"]), _as_size(c["sizes"])) for c in chunks],
    )


def _as_properties(record: Any) -> TensorProperties:
    dtype, layout, requires_grad, memory_format, pin_memory = _plain(
        _state(record, "TensorProperties"), tuple
    )
    if isinstance(layout, _Record):
        [name] = _arguments(layout, "_get_layout")
        layout = getattr(torch, _plain(name, str).removeprefix("torch."))
    [encoding] = _arguments(memory_format, "_MEM_FORMAT_ENCODING")
    formats = (torch.contiguous_format, torch.channels_last, torch.preserve_format)
    return TensorProperties(
        dtype=_plain(dtype, torch.dtype),
        layout=_plain(layout, torch.layout),
        requires_grad=_plain(requires_grad, bool),
        memory_format=formats[_number(encoding)],
        pin_memory=_plain(pin_memory, bool),
    )


def _as_index(record: Any) -> MetadataIndex:
    state = _fields(record, "MetadataIndex")
    offset, index = state.get("offset"), state.get("index")
    return MetadataIndex(
        _plain(state["fqn"], str),
        None if offset is None else _as_size(offset),
        None if index is None else _number(index),
    )


def _as_storage(record: Any) -> _StorageInfo:
    state = _fields(record, "_StorageInfo")
    if state.get("transform_descriptors"):
        raise TypeError("its tensors are stored transformed, which this package never does")
    return _StorageInfo(
        _plain(state["relative_path"], str), _number(state["offset"]), _number(state["length"])
    )


def _as_planner_data(value: Any) -> dict[str, tuple[str | int, ...]] | None:
    if value is None:
        return None
    return {
        _plain(name, str): tuple(
            part if type(part) is str else _number(part) for part in _plain(path, tuple)
        )
        for name, path in _plain(value, dict).items()
    }


def _as_size(record: Any) -> torch.Size:
    [sizes] = _arguments(record, "Size")
    if type(sizes) not in (list, tuple):
        raise TypeError(f"a {type(sizes).__name__} is no shape")
    return torch.Size([_number(size) for size in sizes])


def _state(record: Any, name: str) -> Any:
    if not isinstance(record, _Record) or record.name != name:
        raise TypeError(f"a {getattr(record, 'name', type(record).__name__)} is no {name}")
    return record.__dict__["state"]


def _fields(record: Any, name: str) -> dict[str, Any]:
    return _plain(_state(record, name), dict)


def _arguments(record: Any, name: str) -> tuple[Any, ...]:
    _state(record, name)
    arguments: tuple[Any, ...] = record.__dict__["args"]
    return arguments


def _plain(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} stands where a {kind.__name__} belongs")
    return value


def _optional(value: Any, kind: type) -> Any:
    return None if value is None else _plain(value, kind)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError(f"{value!r:.40} is no size or place")
    return value
