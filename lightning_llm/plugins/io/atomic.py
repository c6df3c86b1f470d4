"""`AtomicCheckpointIO`: a checkpoint is there and whole, or the save raises."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.plugins.io.background import BackgroundSave
from lightning_llm.plugins.io.durable import sweep, write_checkpoint
from lightning_llm.plugins.io.sealed_file import local_path, read_checkpoint
from lightning_llm.plugins.io.sharded import is_sharded, read_sharded
from lightning_llm.plugins.io.sharded_save import remove_folder
from lightning_llm.plugins.io.snapshot import snapshot


class AtomicCheckpointIO(CheckpointIO):
    """Save checkpoints that survive a crash at any byte, and refuse those that were altered.

    A file is written beside its target, forced to the disk and renamed, so that under its name
    there is always a whole one. It carries a SHA-256 of itself, checked when it is loaded. Loading
    never runs code. Files of plain Lightning load as well, without a checksum to compare.

    Args:
        asynchronous: Copy the tensors to host memory and write in a thread while training goes on;
            so does `FSDP2Strategy`, with every rank's shards. At most one save is under way; the
            next waits for it. A checkpoint is deleted only once the save under way has succeeded. A
            save that failed raises at the next save and at the end of the run, and, with the
            callback `SaveWatcher`, before the next training step.

    Example:
        >>> Trainer(plugins=AtomicCheckpointIO(), callbacks=[ModelCheckpoint()])  # doctest: +SKIP
    """

    def __init__(self, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self._swept: set[Path] = set()
        self._saved_in: set[Path] = set()  # folders, without links
        self.background = BackgroundSave()

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; when this returns, or the thread ends, it is on the disk.

        Raises:
            OSError: It could not be written: what failed, the bytes needed and those free.
            TypeError: ``storage_options`` is given, which means nothing for local files.
        """
        if storage_options is not None:
            raise InvalidTypeError(
                f"storage_options={storage_options!r}: AtomicCheckpointIO writes local files and "
                "takes none"
            )
        target = local_path(path)
        self.saves_to(target)
        self.background.wait()
        self._sweep(target.parent)
        if not self.asynchronous:
            write_checkpoint(checkpoint, target)
            return
        copied = snapshot(checkpoint)
        self.background.start(lambda: write_checkpoint(copied, target), target.name)

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | str | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Verify a file, or a folder of shards, and load it as plain data.

        Raises:
            DamagedCheckpointError: The file is not what was written, or holds more than data.
            ValueError: The path is a URL, or ``weights_only=False`` asks for running its code.
        """
        if weights_only is False:
            raise InvalidValueError(
                f"weights_only=False would run code from {path}; AtomicCheckpointIO never does. "
                "Convert the file once with torch.load in a place where that is harmless"
            )
        self.background.wait()
        if is_sharded(local_path(path)):
            return read_sharded(local_path(path))
        return read_checkpoint(path, map_location=map_location or "cpu")

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, after the save under way if there is one; a missing one is fine.

        ``ModelCheckpoint`` takes the names of what it deletes from the checkpoint that a run
        resumes from, and that may be somebody else's file. So only checkpoints are deleted, and
        only below the folders that this run saves to; what is left is named in a warning.
        """
        target = local_path(path)

        def remove() -> None:
            reason = self._reason_to_keep(target)
            if reason is not None:
                rank_zero_warn(f"{path} is not deleted: {reason}")
                return
            if target.is_dir() and not target.is_symlink():
                remove_folder(target)
            else:
                target.unlink(missing_ok=True)

        self.background.after(remove)

    def saves_to(self, path: Path) -> None:
        """Note that this run saves a checkpoint under ``path``."""
        self._saved_in.add(path.parent.resolve())

    def _reason_to_keep(self, target: Path) -> str | None:
        """Why a path is not one to delete; None for a checkpoint of this run, or nothing at all."""
        if not os.path.lexists(target):
            return None
        if ".." in target.parts:
            return "its path leads through '..'"
        folder = target.parent.resolve()
        if self._saved_in and not self._saved_in & {folder, *folder.parents}:
            return "it lies outside of the folders that this run saves to"
        if target.is_symlink():
            return None  # the link goes, and what it points to stays
        if target.is_dir():
            return None if is_sharded(target) else "it is a folder without a checkpoint"
        with target.open("rb") as file:
            is_archive = file.read(2) == b"PK"  # as torch.save begins
        return None if is_archive else "it is no checkpoint file"

    def raise_failure(self) -> None:
        """Raise the error of a save in the thread, once; costs nothing when there is none."""
        self.background.raise_failure()

    @override
    def teardown(self) -> None:
        """Wait for the save under way; a failed one raises, so no run ends well without it."""
        self.background.wait()

    def _sweep(self, folder: Path) -> None:
        if folder in self._swept:
            return
        self._swept.add(folder)
        for path in sweep(folder):
            rank_zero_info(f"removed {path}, left by a save that was interrupted")
