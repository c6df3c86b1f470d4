"""Which checkpoint ``fit --resume`` continues from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

Resume = Literal["auto", "must", "never"]


def checkpoint_to_resume(resume: Resume, ckpt_path: str | None, root: Path) -> str | None:
    """Return the checkpoint to load, or None to start fresh.

    Args:
        resume: ``never`` uses ``ckpt_path`` as given; ``auto`` takes the newest readable
            checkpoint under ``root``, if there is one; ``must`` fails when there is none.
        ckpt_path: What ``--ckpt_path`` said.
        root: The run's own directory, ``trainer.default_root_dir``.

    Raises:
        ValueError: Both options are given.
        FileNotFoundError: ``must`` and nothing to resume from, or ``ckpt_path`` is not there.
    """
    if resume == "never":
        if ckpt_path not in (None, "last", "best", "hpc") and not Path(ckpt_path or "").exists():
            raise FileNotFoundError(f"--ckpt_path {ckpt_path}: no such file or folder")
        return ckpt_path
    if ckpt_path is not None:
        raise ValueError(f"--resume {resume} chooses the checkpoint itself: leave --ckpt_path out")
    files = sorted(root.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        problem = _why_unreadable(file)
        if problem is None:
            sys.stderr.write(f"resuming from {file}\n")
            return str(file)
        sys.stderr.write(f"skipping {file}: {problem}\n")
    if resume == "must":
        raise FileNotFoundError(f"--resume must: no readable checkpoint under {root}")
    sys.stderr.write(f"no checkpoint under {root}: starting fresh\n")
    return None


def _why_unreadable(file: Path) -> str | None:
    import torch

    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        return (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'unreadable'}"
        )
    missing = [key for key in ("state_dict", "loops", "optimizer_states") if key not in checkpoint]
    return f"it lacks {', '.join(missing)}" if missing else None
