"""Writes a checkpoint as a folder, every rank its own shards; under its name it is always whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from lightning_llm.errors import NotSavedError
from lightning_llm.plugins.io.durable import (
    PART_SUFFIX,
    PLAIN_FILE,
    hidden,
    sync_folder,
    take_place,
    write_checkpoint,
)
from lightning_llm.plugins.io.sharded_metadata import METADATA_FILE

FILES_KEY = "lightning_llm.files"
_CHUNK_BYTES = 1 << 22


def save_sharded(
    tensors: dict[str, Tensor],
    plain: dict[str, Any],
    path: Path,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write tensors and plain data into a folder; all ranks call it together.

    Shards go into a folder beside the target. ``meta.pt``, with the plain data and the SHA-256 of
    every file, is written last; then the folder takes the target's name. What had that name before
    is moved aside and deleted afterwards: at no moment are old and new shards in one folder.

    Args:
        tensors: By name; a DTensor is written by the ranks that hold it, a plain tensor, which
            must be alike on all ranks, by one of them.
        plain: What ``torch.load(weights_only=True)`` can read; that of the first rank counts.
        path: The target, alike on all ranks.
        group: All ranks, through which they agree; the default group if not given. In a thread it
            must be one that nothing else uses.

    Raises:
        OSError: Some rank could not write; raised on all ranks, and the target is as it was.
    """
    rank = dist.get_rank()
    temporary = Path(_on_first(lambda: _new_folder(path), group))
    try:
        # One writing thread: `sync_files` makes it force every file to the disk.
        writer = dcp.FileSystemWriter(temporary, thread_count=1, sync_files=True)
        try:
            dcp.save(tensors, storage_writer=writer, process_group=group)
        except Exception as error:
            raise NotSavedError(f"checkpoint {path} was not saved: {error}") from error

        def seals() -> dict[str, Any]:
            own = [*temporary.glob(f"__{rank}_*.distcp")]
            if rank == 0:
                own.append(temporary / METADATA_FILE)
            return {file.name: file_seal(file) for file in own}

        files = {name: seal for part in _on_each(seals, group) for name, seal in part.items()}

        def commit() -> None:
            write_checkpoint({**plain, FILES_KEY: files}, temporary / PLAIN_FILE)
            sync_folder(temporary)
            take_place(temporary, path)

        _on_first(commit, group)
    except BaseException:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def file_seal(path: Path) -> list[Any]:
    """Return ``[bytes, sha256]`` of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return [path.stat().st_size, digest.hexdigest()]


def remove_folder(path: Path) -> None:
    """Delete a checkpoint folder; half-deleted it no longer has the name of a checkpoint."""
    doomed = hidden(path)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _new_folder(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*{PART_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)  # of a save that was interrupted
    temporary = hidden(path)
    temporary.mkdir()
    return str(temporary)


def _on_first(action: Callable[[], Any], group: dist.ProcessGroup | None) -> Any:
    """Run an action on the first rank; all get its result, or its error."""
    outcome: list[Any] = [None, None]
    error: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as caught:
            error, outcome[1] = caught, str(caught)
    dist.broadcast_object_list(outcome, src=0, group=group)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise NotSavedError(f"the first rank could not save: {outcome[1]}")
    return outcome[0]


def _on_each(action: Callable[[], Any], group: dist.ProcessGroup | None) -> list[Any]:
    """Run an action on every rank; all get every rank's result, or the first error."""
    own: list[Any] = [None, None]
    try:
        own[0] = action()
    except Exception as error:
        own[1] = f"rank {dist.get_rank()} could not save: {error}"
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, own, group=group)
    for _, failure in outcomes:
        if failure is not None:
            raise NotSavedError(failure)
    return [result for result, _ in outcomes]
