"""`AtomicCheckpointIO`: a checkpoint is there and whole, or the save raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info
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
        """Delete a checkpoint, after the save under way if there is one; a missing one is fine."""
        target = local_path(path)

        def remove() -> None:
            if target.is_dir() and not target.is_symlink():
                remove_folder(target)
            else:
                target.unlink(missing_ok=True)

        self.background.after(remove)

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
