"""Write a checkpoint file so that under its name there is always a whole one."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, cast

import torch
from torch import Tensor

from lightning_llm.errors import NotSavedError, not_saved
from lightning_llm.plugins.io.sealed_file import SealingWriter

try:
    import fcntl
except ImportError:  # Windows: leftovers are told by nothing, so none are swept
    fcntl = None  # type: ignore[assignment]

PART_SUFFIX = ".part"
PLAIN_FILE = "meta.pt"  # of a folder of shards, written last


def write_checkpoint(checkpoint: Any, path: Path) -> None:
    """Write beside the target, force it to the disk, then rename it over the target.

    Whatever happens, the file that was there before stays or the new one is complete: after a
    killed process, a full disk, or a power cut.

    Raises:
        OSError: The file was not written; the message names it, the bytes needed and those free.
    """
    writer: SealingWriter | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as (temporary, file):
            writer = SealingWriter(file)
            torch.save(checkpoint, cast("IO[bytes]", writer))
            writer.seal()
            file.flush()
            os.fsync(file.fileno())
            take_place(temporary, path)
    except Exception as error:
        # A full disk reaches us as a RuntimeError of the archive's writer.
        cause = (writer and writer.error) or error
        if not isinstance(cause, OSError):
            raise
        _explain(cause, path, checkpoint)


def sweep(folder: Path) -> list[Path]:
    """Remove what crashed saves left in a folder, and return it.

    A save in progress, of any process and host, holds a lock on its file, which goes with it.
    """
    removed: list[Path] = []
    if fcntl is None:
        return removed
    for path in folder.glob(f".*{PART_SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path)
    return removed


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open a locked file beside the target; it is gone afterwards, renamed or removed."""
    while True:
        temporary = hidden(path)
        file = temporary.open("xb", buffering=1 << 20)
        if fcntl is None:
            break
        with suppress(OSError):  # a file system without locks: then nobody can sweep it either
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            break
        file.close()  # swept between opening and locking
    try:
        yield temporary, file
    finally:
        # Closing writes what is buffered; after a failed write that fails again.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            temporary.unlink()


def take_place(temporary: Path, path: Path) -> None:
    """Give a finished file or folder its name; what had it is there until then, and gone after.

    Raises:
        OSError: The name is that of a folder which is no checkpoint.
    """
    old: Path | None = None
    if path.is_dir() and not path.is_symlink():
        if not (path / PLAIN_FILE).is_file():
            raise NotSavedError(
                errno.EISDIR, "there is a folder of that name, which is no checkpoint"
            )
        old = hidden(path)  # a folder cannot be replaced in one step
        os.rename(path, old)
    elif temporary.is_dir():
        path.unlink(missing_ok=True)
    os.replace(temporary, path)
    sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def hidden(path: Path) -> Path:
    """A name beside the target for what is not finished or about to be deleted."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}")


def sync_folder(folder: Path) -> None:
    """Force a rename to the disk; some network file systems cannot, and need not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _explain(cause: OSError, path: Path, checkpoint: Any) -> NoReturn:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    needed, free = _bytes_of(checkpoint), shutil.disk_usage(folder).free
    raise not_saved(
        cause.errno or errno.EIO,
        f"checkpoint {path} was not saved: {cause.strerror or cause}; it needs {needed:,} bytes, "
        f"{free:,} are free in {folder}. Files saved before are untouched",
    ) from cause


def _bytes_of(checkpoint: Any) -> int:
    """Bytes of the distinct storages in nested containers."""
    storages: dict[int, int] = {}
    stack = [checkpoint]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
    return sum(storages.values())
