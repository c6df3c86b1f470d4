"""Which checkpoint ``fit --resume`` continues from, and what ``--ckpt_path`` stands for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from lightning_llm.errors import InvalidValueError, MissingFileError
from lightning_llm.plugins.io import DamagedCheckpointError, read_checkpoint
from lightning_llm.plugins.io.sealed_file import local_path
from lightning_llm.plugins.io.sharded import ShardedCheckpoint, finish_interrupted

Resume = Literal["auto", "must", "never"]


def checkpoint_to_resume(resume: Resume, ckpt_path: str | None, root: Path) -> str | None:
    """Return the checkpoint to load, or None to start fresh.

    Args:
        resume: ``never`` uses ``ckpt_path``; ``auto`` takes the newest checkpoint under ``root``
            that verifies, if there is one, and says which it skipped and why; ``must`` fails when
            there is none.
        ckpt_path: What ``--ckpt_path`` said: a path, or ``last``, which is what ``must`` takes.
        root: The run's own directory, ``trainer.default_root_dir``.

    Raises:
        ValueError: Both options are given, or ``ckpt_path`` is a URL.
        FileNotFoundError: ``must`` or ``last`` and nothing to resume from, or ``ckpt_path`` is not
            there.
    """
    # Lightning's own `last` is a file of that name: where there is none it starts from scratch.
    last = resume == "never" and ckpt_path == "last"
    if resume == "never" and not last:
        if ckpt_path in (None, "best", "hpc"):
            return ckpt_path
        if not local_path(ckpt_path).exists():
            raise MissingFileError(f"--ckpt_path {ckpt_path}: no such file or folder")
        return ckpt_path
    if ckpt_path is not None and not last:
        raise InvalidValueError(
            f"--resume {resume} chooses the checkpoint itself: leave --ckpt_path out"
        )
    for path in finish_interrupted(root):
        sys.stderr.write(f"{path}: whole, but without its name since a save was killed\n")
    for path in _newest_first(root):
        problem = _why_unusable(path)
        if problem is None:
            sys.stderr.write(f"{'loading' if last else 'resuming from'} {path}\n")
            return str(path)
        sys.stderr.write(f"skipping {path}: {problem}\n")
    if last or resume == "must":
        option = "--ckpt_path last" if last else "--resume must"
        raise MissingFileError(f"{option}: no readable checkpoint under {root}")
    sys.stderr.write(f"no readable checkpoint under {root}: starting fresh\n")
    return None


def _newest_first(root: Path) -> list[Path]:
    # A link such as last.ckpt is the file it points to; one that points nowhere is nothing.
    paths = {path.resolve() for path in root.rglob("*.ckpt") if path.exists()}
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, str(path)), reverse=True)


def _why_unusable(path: Path) -> str | None:
    try:
        if path.is_dir():
            # Presence and sizes of all files; the ranks compare checksums when they load it.
            folder = ShardedCheckpoint(path)
            checkpoint: Any = {**folder.plain, "state_dict": folder.weights()}
        else:
            checkpoint = read_checkpoint(path, mmap=True)
    except (DamagedCheckpointError, OSError) as error:
        return str(error)
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__}, not the state of a run"
    missing = [key for key in ("state_dict", "loops", "optimizer_states") if key not in checkpoint]
    return f"it lacks {', '.join(missing)}" if missing else None
