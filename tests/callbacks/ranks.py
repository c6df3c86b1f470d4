"""Running a function in several processes that Lightning takes for ranks started by torchrun."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_on_ranks(function: Callable[[], Any], world_size: int, directory: Path) -> list[Any]:
    """What ``function()``, importable by name, returns on each rank (gloo)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(function, world_size, port, directory), nprocs=world_size)
    return [pickle.loads((directory / f"{rank}").read_bytes()) for rank in range(world_size)]


def _rank(
    rank: int, function: Callable[[], Any], world_size: int, port: int, directory: Path
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
    torch.set_num_threads(1)
    torch.manual_seed(1)
    (directory / f"{rank}").write_bytes(pickle.dumps(function()))
    torch.distributed.destroy_process_group()
