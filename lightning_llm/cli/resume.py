"""Which checkpoint ``fit --resume`` continues from, and what ``--ckpt_path`` stands for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_llm.cli.run_folder import RunFolder, refuse_occupied
from lightning_llm.cli.run_identity import RUN_KEY, RunIdentity
from lightning_llm.errors import InvalidValueError, MissingFileError
from lightning_llm.plugins.io import DamagedCheckpointError, read_checkpoint
from lightning_llm.plugins.io.sealed_file import local_path
from lightning_llm.plugins.io.sharded import ShardedCheckpoint, finish_interrupted, is_sharded

Resume = Literal["auto", "must", "never"]


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint, and what is known of it before its checksum is compared."""

    path: Path
    contents: Mapping[str, Any]
    problem: str | None = None

    @property
    def order(self) -> tuple[Any, ...]:
        """The last start first, then the furthest step; the time of the file only breaks ties."""
        run = self.contents.get(RUN_KEY) or {}
        return (
            self.problem is not None,  # what cannot be read is reported before the others
            float(run.get("started", 0.0)),
            self.step,
            _batches(self.contents),
            self.path.stat().st_mtime_ns,
            str(self.path),
        )

    @property
    def step(self) -> int:
        """Optimizer steps taken, -1 where the file does not say."""
        step = self.contents.get("global_step")
        return step if isinstance(step, int) else -1


def checkpoint_to_resume(
    resume: Resume,
    ckpt_path: str | None,
    folder: RunFolder | Path,
    identity: RunIdentity | None = None,
    *,
    evaluates: bool = False,
) -> str | None:
    """Return the checkpoint to load, or None to start fresh.

    Args:
        resume: ``never`` uses ``ckpt_path``; ``auto`` takes the checkpoint of this recipe with the
            most steps that verifies, if there is one, and says which it skipped and why; ``must``
            fails when there is none.
        ckpt_path: What ``--ckpt_path`` said: a path, or ``last``, which is what ``must`` takes.
        folder: Where the recipe saves; a path stands for that folder with all below it.
        identity: Of the recipe; without it no checkpoint counts as another run's.
        evaluates: The weights are to be evaluated, on whatever data: only the model must be the
            recipe's.

    Raises:
        ValueError: Both options are given, or ``ckpt_path`` is a URL.
        FileNotFoundError: ``must`` or ``last`` and nothing to resume from, or ``ckpt_path`` is not
            there.
        FileExistsError: ``auto`` finds nothing of this recipe, but the model of another one where
            it would save.
    """
    # Lightning's own `last` is a file of that name: where there is none it starts from scratch.
    last = resume == "never" and ckpt_path == "last"
    if resume == "never" and not last:
        if ckpt_path in (None, "best", "hpc"):
            return ckpt_path
        if not local_path(ckpt_path).exists():
            raise MissingFileError(f"--ckpt_path {ckpt_path}: no such file or folder")
        return str(_in_run_folder(local_path(ckpt_path)))
    if ckpt_path is not None and not last:
        raise InvalidValueError(
            f"--resume {resume} chooses the checkpoint itself: leave --ckpt_path out"
        )
    if isinstance(folder, Path):
        folder = RunFolder(folder, own={folder: True})
    for searched in folder.searched():
        for path in finish_interrupted(searched) if searched.is_dir() else ():
            say(f"{path}: whole, but without its name since a save was killed")
    candidates = sorted(map(look_into, folder.checkpoints()), key=lambda c: c.order, reverse=True)
    others: dict[Path, str] = {}
    for candidate in candidates:
        problem, path = candidate.problem, candidate.path
        if problem is None and identity is not None:
            other = identity.differences(candidate.contents, data=not evaluates)
            if other:
                others[path] = other
                say(f"skipping {path}: it is of another run ({other})")
                continue
        problem = problem or _why_unusable(path)
        if problem is None:
            at = f" (step {candidate.step:,})" if candidate.step >= 0 else ""
            say(f"{'loading' if last else 'resuming from'} {path}{at}")
            return str(path)
        say(f"skipping {path}: {problem}")
    where = " or ".join(str(path) for path in folder.searched())
    if last or resume == "must":
        option = "--ckpt_path last" if last else "--resume must"
        hint = f" of this recipe: {_one(others)}. {_TAKE_IT}" if others else ""
        raise MissingFileError(f"{option}: no readable checkpoint under {where}{hint}")
    occupied = {path.resolve() for path in folder.own_checkpoints()} & others.keys()
    if occupied:
        refuse_occupied(folder, because=f"{_one(others)}. {_TAKE_IT}")
    say(f"no readable checkpoint under {where}: starting fresh")
    return None


def _in_run_folder(path: Path) -> Path:
    """Return a checkpoint itself; of the folder of a run, the readable one furthest on.

    Raises:
        FileNotFoundError: The folder has none.
    """
    if not path.is_dir() or is_sharded(path):
        return path
    files = {file.resolve() for file in path.rglob("*.ckpt") if file.exists()}
    found = sorted(map(look_into, files), key=lambda candidate: candidate.order, reverse=True)
    for candidate in found:
        problem = candidate.problem or _why_unusable(candidate.path)
        if problem is None:
            say(f"loading {candidate.path} (step {candidate.step:,})")
            return candidate.path
        say(f"skipping {candidate.path}: {problem}")
    raise MissingFileError(f"--ckpt_path {path}: the folder holds no readable checkpoint (*.ckpt)")


_TAKE_IT = "To go on from it all the same, name it: --ckpt_path FILE"


def _one(others: Mapping[Path, str]) -> str:
    path, reason = next(iter(others.items()))
    return f"{path} is of another run ({reason})"


def look_into(path: Path) -> _Candidate:
    """Read what a checkpoint says of itself, without its tensors and without its checksum."""
    try:
        if path.is_dir():
            # Presence and sizes of all files; the ranks compare checksums when they load it.
            folder = ShardedCheckpoint(path)
            contents: Any = {**folder.plain, "state_dict": folder.weights()}
        else:
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        # Reading it with its checksum says best what is wrong.
        return _Candidate(path, {}, _why_unusable(path) or "it cannot be read")
    problem = _why_no_run(contents)
    return _Candidate(path, contents if isinstance(contents, dict) else {}, problem)


def is_of_a_run(path: Path) -> bool:
    """Whether a checkpoint has the state of a run, and not weights alone."""
    return look_into(path).problem is None


def step_of(path: Path) -> str:
    """Say at which step a checkpoint was saved, in a few words."""
    step = look_into(path.resolve()).step if path.exists() else -1
    return f"step {step:,}" if step >= 0 else "of an unknown step"


def run_of(path: Path) -> str | None:
    """Return the name of the run that wrote a checkpoint; None where it has none."""
    return (look_into(path).contents.get(RUN_KEY) or {}).get("id")


def _why_unusable(path: Path) -> str | None:
    try:
        if path.is_dir():
            folder = ShardedCheckpoint(path)
            checkpoint: Any = {**folder.plain, "state_dict": folder.weights()}
        else:
            checkpoint = read_checkpoint(path, mmap=True)
    except (DamagedCheckpointError, OSError) as error:
        return str(error)
    return _why_no_run(checkpoint)


def _why_no_run(checkpoint: Any) -> str | None:
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__}, not the state of a run"
    missing = [key for key in ("state_dict", "loops", "optimizer_states") if key not in checkpoint]
    return f"it lacks {', '.join(missing)}" if missing else None


def _batches(contents: Mapping[str, Any]) -> int:
    """Batches trained on, which go on where ``global_step`` stands still."""
    try:
        progress = contents["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return int(progress["total"]["completed"])
    except (KeyError, TypeError):
        return -1


def say(line: str) -> None:
    """To standard error, once for all ranks."""
    if getattr(rank_zero_only, "rank", 0) in (0, None):
        sys.stderr.write(f"{line}\n")
