"""Running a function in several processes that Lightning takes for ranks started by torchrun."""

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(function, arguments, world_size, port, directory), nprocs=world_size)
    return [pickle.loads((directory / f"{rank}").read_bytes()) for rank in range(world_size)]


def _rank(
    rank: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    world_size: int,
    port: int,
    directory: Path,
) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
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
