"""Checks that the ranks a launcher started are those the trainer was told of.

Lightning compares them for replicas only. Elsewhere too many devices make the ranks wait for others
that never come, and too few end in an index error, or in several runs that take themselves for the
only one and write to one folder.
"""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
)
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_llm.errors import InvalidValueError

# In which Lightning takes a job of SLURM for a shell that somebody types into.
_INTERACTIVE_JOBS = ("bash", "interactive")


def check_launch(
    environment: ClusterEnvironment | None, devices: int, nodes: int, *, alone: bool = False
) -> None:
    """Compare ``trainer.devices`` and ``trainer.num_nodes`` with what torchrun or srun started.

    Args:
        environment: As Lightning found it.
        devices: Of the trainer, per machine.
        nodes: Machines of the trainer.
        alone: The strategy waits for no other rank. Then the first may run: a batch script of SLURM
            has the variables of the whole job, and may well validate on one device.

    Raises:
        ValueError: They differ, or tasks of SLURM do not know of each other.
    """
    if isinstance(environment, LightningEnvironment):
        _check_interactive_job()
        return
    if environment is None or (alone and environment.global_rank() == 0):
        return
    ranks = environment.world_size()
    per_machine = _ranks_per_machine() or (devices if ranks % devices == 0 else ranks)
    if ranks == devices * nodes and per_machine == devices:
        return
    launcher, option = "torchrun", "--nnodes {} --nproc-per-node {}"
    if isinstance(environment, SLURMEnvironment):
        launcher, option = "srun", "--nodes {} --ntasks-per-node {}"
    raise InvalidValueError(
        f"trainer.devices={devices} and trainer.num_nodes={nodes} stand for {devices * nodes} "
        f"ranks, but {launcher} started {ranks}, {per_machine} on each machine: set "
        f"trainer.devices={per_machine} and trainer.num_nodes={max(1, ranks // per_machine)}, or "
        f"start with {launcher} {option.format(nodes, devices)}"
    )


def check_devices(strategy: Any, devices: Any) -> None:
    """Refuse several devices for a strategy of one: Lightning leaves the others idle, unsaid.

    Args:
        strategy: Of the trainer.
        devices: As given to the trainer: a number, as text or not, or a list.

    Raises:
        ValueError: There are more than one.
    """
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    count = len(devices) if isinstance(devices, list | tuple) else devices
    if isinstance(strategy, SingleDeviceStrategy) and isinstance(count, int) and count > 1:
        raise InvalidValueError(
            f"trainer.devices={devices} with {type(strategy).__name__}, which uses one device: set "
            "trainer.devices=1, or take a strategy for several: --config recipes/hardware/ddp.yaml"
        )


def _ranks_per_machine() -> int | None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):  # torchrun within a job of SLURM
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None


def _check_interactive_job() -> None:
    name, task = os.environ.get("SLURM_JOB_NAME"), os.environ.get("SLURM_PROCID", "0")
    if name in _INTERACTIVE_JOBS and task != "0":
        raise InvalidValueError(
            f"task {task} of SLURM does not know of the others, because the job is called "
            f"{name!r}, the name of a shell: give it another with srun --job-name train"
        )
