"""How ``fit`` begins: a new run, the rest of an earlier one, or one in its place."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments import SLURMEnvironment

from lightning_llm.cli.resume import (
    checkpoint_to_resume,
    is_of_a_run,
    look_into,
    run_of,
    say,
    step_of,
)
from lightning_llm.cli.run_folder import (
    RunFolder,
    folder_of_trainer,
    model_files,
    refuse_occupied,
    refuse_remote,
    remove_earlier_run,
)
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from lightning_llm.cli.training import RecipeCLI

_REQUEUED = re.compile(r"hpc_ckpt_(\d+)\.ckpt")
_STANDS_FOR = ("last", "best", "hpc")  # what --ckpt_path takes besides a path


def check_folder(config: Any, folder: RunFolder) -> None:
    """Refuse a run that would replace an earlier one's model without having been asked to.

    It costs a look at the folders, so it comes before anything of the recipe is built.

    Args:
        config: The parsed recipe, with the options ``ckpt_path``, ``resume`` and ``overwrite``.
        folder: Where the recipe saves.

    Raises:
        FileExistsError: An earlier run's model is there.
        ValueError: The options contradict each other, or checkpoints are to go to an address.
    """
    refuse_remote(folder)
    resume, given, overwrite = config["resume"], config["ckpt_path"], config["overwrite"]
    if overwrite and (resume != "never" or given in _STANDS_FOR):
        option = f"--resume {resume}" if resume != "never" else f"--ckpt_path {given}"
        raise InvalidValueError(
            f"--overwrite replaces the earlier run, {option} continues it: give one of the two"
        )
    if overwrite and given is not None and folder.owns(Path(given)):
        raise InvalidValueError(
            f"--overwrite would delete --ckpt_path {given} itself, which lies where this recipe "
            f"saves: leave --overwrite out to continue from it, or move it away"
        )
    begins_anew = resume == "never" and given not in _STANDS_FOR and not overwrite
    if not begins_anew or config["trainer"].get("fast_dev_run"):
        return
    if given is not None and _continues(Path(given), folder):
        return
    if given is None and waiting_checkpoint(folder.root) is not None:
        return
    refuse_occupied(folder, of=step_of)


def checkpoint_of_run(cli: RecipeCLI) -> str | None:
    """Choose what ``fit`` loads, and clear the folder of a run that is to be replaced.

    Raises:
        FileExistsError: An earlier run's model is where this one would save.
        FileNotFoundError: There is nothing to continue from.
        ValueError: The options contradict each other.
    """
    config, folder = cli.config, folder_of_trainer(cli.trainer)
    folder.remote.clear()  # looked at in the recipe, which also knows the plugins
    check_folder(config, folder)
    resume, given, overwrite = config["resume"], config["ckpt_path"], config["overwrite"]
    # The recipe that is kept with the run must not replace it when it is used again.
    config["overwrite"] = False
    if overwrite and _restarted():
        say("this job was restarted: it continues, as with --resume auto, and overwrites nothing")
        overwrite, resume = False, "auto"
    if overwrite:
        removed = [] if cli.trainer.fast_dev_run else remove_earlier_run(folder, is_of_a_run)  # type: ignore[attr-defined]
        for path in removed:
            say(f"--overwrite: removed {path}")
    chosen = checkpoint_to_resume(resume, given, folder, cli.identity)
    if chosen is None and not overwrite:
        requeued = waiting_checkpoint(folder.root)
        other = cli.identity.differences(look_into(requeued).contents) if requeued else None
        if other:  # Lightning would load it without being asked
            refuse_occupied(folder, because=f"{requeued} is of another run ({other})")
        exports = [place for place in folder.exports if model_files(place)]
        if resume == "auto" and exports and not requeued:
            reason = f"{exports[0]} holds an export, but there is no checkpoint to continue from"
            refuse_occupied(folder, because=reason)
    return chosen


def _continues(path: Path, folder: RunFolder) -> bool:
    """Whether a run from this checkpoint is the one whose checkpoints are in the folder."""
    if folder.owns(path):
        return True
    run = run_of(path) if path.exists() else None
    left = folder.own_checkpoints()
    return run is not None and bool(left) and all(run_of(other) == run for other in left)


def waiting_checkpoint(root: str | Path) -> Path | None:
    """The checkpoint from which Lightning lets a job of SLURM go on by itself."""
    root = Path(root)
    if not SLURMEnvironment.detect() or not root.is_dir():
        return None
    found = {int(m[1]): path for path in root.iterdir() if (m := _REQUEUED.fullmatch(path.name))}
    return found[max(found)] if found else None


def _restarted() -> bool:
    """Whether a launcher or scheduler started this very job before."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in counts)
