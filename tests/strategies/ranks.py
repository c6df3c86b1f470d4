"""Processes that Lightning takes for ranks which torchrun or srun started on one machine."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_on_ranks(
    function: Callable[..., Any], world_size: int, directory: Path, *arguments: Any
) -> list[Any]:
    """What ``function(*arguments)``, importable by name, returns on each rank (gloo)."""
    port = free_port()
    mp.spawn(_rank, args=(function, arguments, world_size, port, directory), nprocs=world_size)
    return [pickle.loads((directory / f"{rank}").read_bytes()) for rank in range(world_size)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables of a rank of torchrun."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }


def srun(task: int, tasks: int, port: int) -> dict[str, str]:
    """The variables of a task of ``srun --ntasks-per-node TASKS``; see its manual."""
    variables = {
        "JOB_ID": "77",
        "JOB_NAME": "train",
        "NNODES": "1",
        "NODELIST": "127.0.0.1",
        "JOB_NODELIST": "127.0.0.1",
        "NTASKS": str(tasks),
        "NTASKS_PER_NODE": str(tasks),
        "STEP_NUM_TASKS": str(tasks),
        "NODEID": "0",
        "PROCID": str(task),
        "LOCALID": str(task),
    }
    named = {f"SLURM_{name}": value for name, value in variables.items()}
    return named | {"MASTER_PORT": str(port)}


def _rank(
    rank: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    world_size: int,
    port: int,
    directory: Path,
) -> None:
    os.environ |= torchrun(rank, world_size, port)
    # Of an earlier test: Lightning would seed with it once more, after the module is built.
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    (directory / f"{rank}").write_bytes(pickle.dumps(function(*arguments)))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    # About one gloo process in a hundred aborts in its C++ destructors on a busy machine.
    os._exit(0)
