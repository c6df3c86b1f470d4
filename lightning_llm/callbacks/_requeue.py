"""Jobs of SLURM that go back into the queue: their checkpoint's name, and the request."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import lightning.pytorch as L
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_warn

# What Lightning looks for, in `trainer.default_root_dir`, when a job of SLURM starts.
_NAME = re.compile(r"hpc_ckpt_(\d+)\.ckpt")


def requeue_signal(trainer: L.Trainer) -> int | None:
    """What asks this job to go back into the queue; None outside of SLURM, or if it may not."""
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal or signal.SIGUSR1


def hand_over(saved: Path) -> Path:
    """Give a finished checkpoint the name that the next start looks for; delete those before it.

    Lightning takes any name with ``hpc_ckpt_`` in it for one, also that of a file half written or
    half deleted. Here nothing has it that is not whole.
    """
    earlier = {
        int(found[1]): path
        for path in saved.parent.iterdir()
        if (found := _NAME.fullmatch(path.name))
    }
    target = saved.with_name(f"hpc_ckpt_{max(earlier, default=0) + 1}.ckpt")
    os.rename(saved, target)
    for path in earlier.values():
        os.rename(path, saved)
        if saved.is_dir():
            shutil.rmtree(saved)
        else:
            saved.unlink()
    return target


def requeue() -> None:
    """Ask SLURM to put this job, or this task of its array, into the queue again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        rank_zero_warn(f"SLURM did not requeue job {job} ({problem}); it is saved: start it again")
