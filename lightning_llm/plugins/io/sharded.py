"""A checkpoint that is a folder of shards: opened, verified, read on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_llm.errors import InvalidValueError, MissingFileError
from lightning_llm.plugins.io.durable import PART_SUFFIX, PLAIN_FILE
from lightning_llm.plugins.io.sealed_file import DamagedCheckpointError, read_checkpoint
from lightning_llm.plugins.io.sharded_metadata import (
    METADATA_FILE,
    TensorPlanner,
    TensorReader,
    read_metadata,
)
from lightning_llm.plugins.io.sharded_save import FILES_KEY, file_seal

_WEIGHTS = "state_dict."


def is_sharded(path: Path) -> bool:
    """Whether a path is a folder with a sharded checkpoint, of this package or of Lightning."""
    return (path / PLAIN_FILE).is_file() and (path / METADATA_FILE).is_file()


def finish_interrupted(root: Path) -> list[Path]:
    """Give their names to whole checkpoints that a killed process left between two renames.

    Replacing a folder takes two: what was there is moved aside, then the new one gets the name.
    Whoever dies in between leaves both, whole, under hidden names.

    Args:
        root: Folder below which to look.

    Returns:
        The checkpoints that have their names again.
    """
    found: dict[Path, Path] = {}
    for left in sorted(root.rglob(f".*{PART_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns):
        target = left.with_name(left.name[1:].rsplit(".", 2)[0])
        if left.is_dir() and not target.exists():
            with suppress(DamagedCheckpointError, FileNotFoundError):
                ShardedCheckpoint(left)
                found[target] = left  # the newest of several
    for target, left in found.items():
        with suppress(OSError):  # another rank was first
            left.rename(target)
    return [target for target in found if target.exists()]


def weight_key(name: str) -> str:
    """Name of a weight among the tensors of the folder."""
    return _WEIGHTS + name


def optimizer_key(index: int, parameter: str, key: str) -> str:
    """Name of a tensor of an optimizer's state among the tensors of the folder."""
    return f"optimizer_{index}.state.{parameter}.{key}"


class ShardedCheckpoint:
    """The contents of a folder; opening reads its index and its plain data, no weights.

    Args:
        path: The folder.

    Attributes:
        plain: What is no tensor.

    Raises:
        DamagedCheckpointError: A file is missing or not what was written.
        FileNotFoundError: There is no sharded checkpoint.
    """

    def __init__(self, path: Path) -> None:
        missing = [file for file in (METADATA_FILE, PLAIN_FILE) if not (path / file).is_file()]
        if missing:
            raise MissingFileError(f"{path}: the folder lacks {', '.join(missing)}")
        self.path = path
        self.plain: dict[str, Any] = read_checkpoint(path / PLAIN_FILE)
        # A folder of plain Lightning carries no checksums.
        self._files: dict[str, Any] = self.plain.pop(FILES_KEY, {})
        for name, (size, _) in self._files.items():
            file = path / name
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                raise DamagedCheckpointError(
                    f"{file} has {found} bytes instead of {size}: the folder was altered after "
                    f"it was written, or copied in part"
                )
        self._metadata = read_metadata(path)
        entries: Any = self._metadata.state_dict_metadata  # tensors only, as was checked
        self.tensors: Mapping[str, TensorStorageMetadata] = entries

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Compare files with their checksums; ranks can divide them among each other.

        Raises:
            DamagedCheckpointError: One was altered; it is named.
        """
        for name, seal in sorted(self._files.items())[share::shares]:
            if file_seal(self.path / name) != list(seal):
                raise DamagedCheckpointError(
                    f"sha256 mismatch in {self.path / name}: it was altered after it was written"
                )

    def weights(self) -> dict[str, TensorStorageMetadata]:
        """Shapes and dtypes of the module's state, by its names."""
        return {
            key.removeprefix(_WEIGHTS): entry
            for key, entry in self.tensors.items()
            if key.startswith(_WEIGHTS)
        }

    def load(self, targets: dict[str, Tensor]) -> None:
        """Fill tensors in place, each rank the shards it holds; ranks need not meet.

        Args:
            targets: By their names in the folder.

        Raises:
            ValueError: A name is not there, or a shape is another.
        """
        for name, target in targets.items():
            entry = self.tensors.get(name)
            if entry is None:
                raise InvalidValueError(f"{self.path} has no {name!r}")
            if entry.size != target.shape:
                raise InvalidValueError(
                    f"{name} has the shape {tuple(entry.size)} in {self.path} and "
                    f"{tuple(target.shape)} here"
                )
        if not targets:
            return
        reader = TensorReader(self.path, self._metadata)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each rank reads for itself on purpose
            dcp.load(dict(targets), storage_reader=reader, planner=TensorPlanner(), no_dist=True)

    def read(self, name: str) -> Tensor:
        """Return one tensor whole, on the host."""
        entry = self.tensors[name]
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        self.load({name: tensor})
        return tensor


def read_sharded(path: Path, *, optimizers: bool = True) -> dict[str, Any]:
    """Read a folder as the dictionary that one file would have held, tensor by tensor.

    Args:
        path: The folder.
        optimizers: With their states; without, only what a model needs is read.

    Raises:
        DamagedCheckpointError: The folder is not what was written.
        FileNotFoundError: There is none.
    """
    source = ShardedCheckpoint(path)
    source.verify()
    contents = dict(source.plain)
    weights = {name: source.read(weight_key(name)) for name in source.weights()}
    contents["state_dict"] = {**contents.get("state_dict", {}), **weights}
    states = contents.pop("optimizer_states", [])
    if optimizers and states:
        contents["optimizer_states"] = [
            _by_position(source, index, saved) for index, saved in enumerate(states)
        ]
    return contents


def _by_position(source: ShardedCheckpoint, index: int, saved: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state under the positions of its parameters, as torch keeps it."""
    groups, state, position = [], {}, 0
    for group in saved["param_groups"]:
        positions = list(range(position, position + len(group["params"])))
        for place, name in zip(positions, group["params"], strict=True):
            own = dict(saved["state"].get(name, {}))
            for key in saved["tensors"].get(name, ()):
                own[key] = source.read(optimizer_key(index, name, key))
            if own:
                state[place] = own
        groups.append({**group, "params": positions})
        position += len(positions)
    return {"state": state, "param_groups": groups}
