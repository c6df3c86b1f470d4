"""Where a recipe keeps its run: the folders of its checkpoints, and that of its export.

A run owns them. A second run would replace the model of the first, so it is refused there unless
it goes on with the first (``--resume``, ``--ckpt_path``) or is to replace it (``--overwrite``).
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_llm.callbacks import HFExport, Preemption
from lightning_llm.errors import ExistingFileError, InvalidValueError
from lightning_llm.plugins import AtomicCheckpointIO

_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")

Field = Callable[[str], Any]  # an argument of a callback or logger by its name


@dataclass
class RunFolder:
    """Where one recipe writes what another run must not replace.

    Attributes:
        root: ``trainer.default_root_dir``.
        own: Folders of checkpoints that the next run of the recipe writes to as well, and whether
            their subfolders belong to them.
        versions: Patterns of folders of which every run gets a new one, as the loggers number them.
        files: Single checkpoint files.
        exports: Folders in the Hugging Face layout.
        remote: Addresses such as ``s3://…`` to which checkpoints are to go.
    """

    root: Path
    own: dict[Path, bool] = field(default_factory=dict)
    versions: list[tuple[Path, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    exports: list[Path] = field(default_factory=list)
    remote: list[str] = field(default_factory=list)

    def checkpoints(self) -> list[Path]:
        """Return every checkpoint that the recipe could have written; links count as their targets.

        Those of SLURM's requeued jobs lie in the root itself.
        """
        found = [*self.own_checkpoints(), *_checkpoints_in(self.root, deep=False)]
        for base, pattern in self.versions:
            if base.is_dir():
                for folder in base.glob(pattern):
                    found += _checkpoints_in(folder, deep=True)
        # A link such as last.ckpt is the file it points to; one that points nowhere is nothing.
        return list(dict.fromkeys(path.resolve() for path in found if path.exists()))

    def own_checkpoints(self) -> list[Path]:
        """Return the checkpoints, links included, that a second run would have beside its own."""
        found = [path for path in self.files if os.path.lexists(path)]
        for folder, deep in self.own.items():
            found += _checkpoints_in(folder, deep=deep)
        return list(dict.fromkeys(found))

    def searched(self) -> list[Path]:
        """Return the folders in which `checkpoints` looks."""
        bases = [base for base, _ in self.versions]
        folders = [*self.own, *bases, *(path.parent for path in self.files)]
        outer = [folder for folder in folders if self.root not in (folder, *folder.parents)]
        return list(dict.fromkeys([self.root, *outer]))

    def owns(self, path: Path) -> bool:
        """Whether a checkpoint lies where the recipe writes."""
        path = path.resolve()
        parents = [parent.resolve() for parent in (*self.own, *(base for base, _ in self.versions))]
        known = {file.resolve() for file in self.files}
        in_root = path.parent == self.root.resolve()
        return in_root or path in known or any(parent in path.parents for parent in parents)


def folder_of_trainer(trainer: L.Trainer) -> RunFolder:
    """Say where a run of this trainer keeps its checkpoints."""
    callbacks = [(type(callback), _attribute_of(callback)) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    loggers = [(type(logger), _attribute_of(logger)) for logger in trainer.loggers]
    return _folder(Path(trainer.default_root_dir), callbacks, loggers)


def folder_of_recipe(config: Any) -> RunFolder:
    """Say the same from the recipe alone, before anything is built from it.

    Args:
        config: The section ``trainer`` of the parsed recipe.
    """
    root = config.get("default_root_dir") or Path.cwd()
    callbacks = list(_classes(config.get("callbacks")))
    makes_checkpoints = any(issubclass(kind, Checkpoint) for kind, _ in callbacks)
    if config.get("enable_checkpointing") is not False and not makes_checkpoints:
        callbacks.append((ModelCheckpoint, _nothing))
    if not any(issubclass(kind, Preemption) for kind, _ in callbacks):
        callbacks.append((Preemption, {"filename": "preempted.ckpt"}.get))
    logger = config.get("logger")
    loggers = list(_classes(logger))
    if logger is None or logger is True:
        defaults = {"save_dir": str(root), "name": "lightning_logs"}
        loggers = [(CSVLogger, defaults.get)]
    folder = _folder(Path(root), callbacks, loggers)
    _is_remote(folder, root)
    own_io = (kind for kind, _ in _classes(config.get("plugins")) if issubclass(kind, CheckpointIO))
    if any(kind not in (TorchCheckpointIO, AtomicCheckpointIO) for kind in own_io):
        folder.remote.clear()
    return folder


def _folder(
    root: Path, callbacks: list[tuple[type, Field]], loggers: list[tuple[type, Field]]
) -> RunFolder:
    folder = RunFolder(root)
    saves = False
    for kind, given in callbacks:
        if issubclass(kind, OnExceptionCheckpoint):
            name = f"{given('filename') or 'on_exception'}.ckpt"
            if not _is_remote(folder, given("dirpath")):
                folder.files.append(Path(given("dirpath"), name))
        elif issubclass(kind, Checkpoint):
            saves = True
            dirpath = given("dirpath")
            # Metrics such as val/loss make folders of their own.
            deep = "/" in str(given("filename") or "")
            if dirpath is None:
                _default_folder(folder, loggers)
            elif not _is_remote(folder, dirpath):
                # As ModelCheckpoint itself reads it.
                folder.own[Path(os.path.realpath(os.path.expanduser(dirpath)))] = deep
        elif issubclass(kind, HFExport) and given("directory") is not None:
            folder.exports.append(Path(given("directory")))
        elif issubclass(kind, HFExport):
            log = _log_folder(root, loggers)
            folder.exports += [log / "hf"] if log else [] if loggers else [root / "hf_export"]
    if not saves:
        folder.files += [
            root / str(given("filename") or "preempted.ckpt")
            for kind, given in callbacks
            if issubclass(kind, Preemption)
        ]
    return folder


def _default_folder(folder: RunFolder, loggers: list[tuple[type, Field]]) -> None:
    """Where Lightning saves when no folder is given: below the first logger's, or the root."""
    if not loggers:
        folder.own[folder.root / "checkpoints"] = False
        return
    kind, given = loggers[0]
    base = given("save_dir") or folder.root
    if _is_remote(folder, base):
        return
    log = _log_folder(folder.root, loggers)
    if log is not None:
        folder.own[log / "checkpoints"] = False
    elif issubclass(kind, (CSVLogger, TensorBoardLogger)):
        folder.versions.append((Path(base, _name_of(given)), "*/checkpoints"))
    else:
        folder.versions += [(Path(base), "*/checkpoints"), (Path(base), "*/*/checkpoints")]


def _log_folder(root: Path, loggers: list[tuple[type, Field]]) -> Path | None:
    """The first logger's folder, where it is the same in every run; None where it is numbered."""
    if not loggers or not issubclass(loggers[0][0], (CSVLogger, TensorBoardLogger)):
        return None
    given = loggers[0][1]
    version = given("version")
    if version is None:
        return None
    version = version if isinstance(version, str) else f"version_{version}"
    return Path(given("save_dir") or root, _name_of(given), version)


def _name_of(given: Field) -> str:
    return given("name") or ""


def _attribute_of(thing: Any) -> Field:
    def get(name: str) -> Any:
        # A logger chooses its next number when it is first asked for it.
        return getattr(thing, "_version" if name == "version" else name, None)

    return get


def _classes(entries: Any) -> Iterator[tuple[type, Field]]:
    """The classes that a part of a recipe names, each with its arguments."""
    if entries is None or isinstance(entries, (bool, str)):
        return
    for entry in entries if isinstance(entries, list) else [entries]:
        path = entry.get("class_path") if isinstance(entry, Mapping) or _is_section(entry) else None
        if path is None:
            yield type(entry), _attribute_of(entry)
            continue
        module, _, name = path.rpartition(".")
        kind: Any = getattr(importlib.import_module(module), name)
        if isinstance(kind, type):
            arguments = entry.get("init_args") or {}
            yield kind, arguments.get


def _nothing(name: str) -> None:
    """Every argument is the default."""


def _is_section(entry: Any) -> bool:
    return hasattr(entry, "class_path") and hasattr(entry, "get")


def _is_remote(folder: RunFolder, address: Any) -> bool:
    scheme, colon, _ = str(address).partition("://")
    if not (colon and scheme.isalnum()):
        return False
    folder.remote.append(str(address))
    return True


def refuse_remote(folder: RunFolder) -> None:
    """Refuse, before anything is built, a folder to which no checkpoint can be written.

    Raises:
        ValueError: It is an address such as ``s3://…``.
    """
    if folder.remote:
        raise InvalidValueError(
            f"checkpoints are to go to {folder.remote[0]}, but they are written to local folders "
            f"only, where a save is atomic. Set dirpath to a local folder and copy it afterwards, "
            f"or mount the bucket; a CheckpointIO of your own among trainer.plugins may write "
            f"anywhere"
        )


def _checkpoints_in(folder: Path, *, deep: bool) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((folder.rglob if deep else folder.glob)("*.ckpt"))


# ---------------------------------------------------------------------- whose it is


def refuse_occupied(
    folder: RunFolder, *, because: str | None = None, of: Callable[[Path], str] | None = None
) -> None:
    """Refuse to begin a run where another one has left its model.

    Args:
        folder: Of the new run.
        because: Why what is there cannot be continued, where that is known.
        of: Says in a few words what a checkpoint is, for the message.

    Raises:
        FileExistsError: There is a checkpoint or an export; the message says how to go on.
    """
    own_folder = (
        f"give this run a folder of its own, such as --trainer.default_root_dir "
        f"{_free_name(folder.root)}{_other_folders(folder)}"
    )
    left = folder.own_checkpoints()
    if because is not None:
        raise ExistingFileError(
            f"{because}. To begin anew, replace what is there with --overwrite, or {own_folder}"
        )
    if left:
        newest = max(left, key=lambda path: path.lstat().st_mtime_ns)
        what = f" ({of(newest)})" if of else ""
        found = f"{newest}{what} is of an earlier run"
    else:
        exports = [path for path in folder.exports if model_files(path)]
        if not exports:
            return
        found = f"{exports[0]} holds the export of an earlier run"
    raise ExistingFileError(
        f"{found}, which this one would replace. Continue the earlier run with --resume auto, "
        f"replace it with --overwrite, or {own_folder}"
    )


def _free_name(root: Path) -> str:
    root = root if root.name else root.resolve()  # `.` has no name
    number = 2
    while root.with_name(f"{root.name}-{number}").exists():
        number += 1
    return str(root.with_name(f"{root.name}-{number}"))


def _other_folders(folder: RunFolder) -> str:
    """Name what does not lie below the root, and so stays when the root changes."""
    root = folder.root.resolve()
    places = [*folder.own, *(path.parent for path in folder.files), *folder.exports]
    outer = [path for path in places if root not in (path.resolve(), *path.resolve().parents)]
    named = " and ".join(str(path) for path in dict.fromkeys(outer))
    return f", and another name for {named}" if named else ""


def model_files(directory: Path) -> list[Path]:
    """Return the files of an exported model in a folder."""
    return [path for pattern in _MODEL_FILES for path in directory.glob(pattern)]


def remove_earlier_run(folder: RunFolder, is_of_a_run: Callable[[Path], bool]) -> list[Path]:
    """Delete the checkpoints of earlier runs where the recipe writes; every rank may call it.

    Args:
        folder: Of the new run. Exports in it stay until the new one takes their place.
        is_of_a_run: Tells a checkpoint of a run from a file that was put there.

    Returns:
        What was deleted.
    """
    removed = []
    paths = folder.own_checkpoints()
    paths += [path for path in _checkpoints_in(folder.root, deep=False) if _is_requeued(path)]
    # Links first: what they point to is looked at under its own name.
    for path in sorted(dict.fromkeys(paths), key=lambda path: not path.is_symlink()):
        if not path.is_symlink() and not is_of_a_run(path):
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue  # another rank was first
        removed.append(path)
    return removed


def _is_requeued(path: Path) -> bool:
    return path.name.startswith("hpc_ckpt_")
