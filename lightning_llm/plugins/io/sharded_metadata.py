"""Reads the index of a sharded checkpoint without running code from it.

``torch.distributed.checkpoint`` keeps its index, ``.metadata``, as a pickle. A pickle calls what it
names; here it may name nothing but the classes such an index is made of.
"""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from typing_extensions import override

from lightning_llm.plugins.io.sealed_file import DamagedCheckpointError

METADATA_FILE = ".metadata"

_CLASSES = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.serialization": frozenset({"_get_layout"}),  # looks a name up among torch's layouts
    "collections": frozenset({"OrderedDict"}),
    "pathlib": frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}),
    "pathlib._local": frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}),
}


def read_metadata(path: Path) -> Metadata:
    """Read the index of a checkpoint folder.

    Raises:
        DamagedCheckpointError: It is no such index, or names anything that an index does not need.
    """
    file = path / METADATA_FILE
    try:
        metadata = _IndexUnpickler(io.BytesIO(file.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, TypeError) as error:
        raise DamagedCheckpointError(f"{file} is no index of a checkpoint: {error}") from error
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise DamagedCheckpointError(f"{file} holds a {type(metadata).__name__}, no index")
    known = {item.name for item in path.iterdir() if item.is_file()}
    for stored in metadata.storage_data.values():
        if stored.relative_path not in known:
            raise DamagedCheckpointError(
                f"{file} refers to {stored.relative_path!r}, which is not in the folder"
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


class _IndexUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype | torch.layout) or name == "Size":
                return found
        if name in _CLASSES.get(module, ()):
            return getattr(importlib.import_module(module), name)
        if module == "builtins" and name in ("set", "frozenset", "list", "dict", "tuple"):
            return getattr(importlib.import_module(module), name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")
