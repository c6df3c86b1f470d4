"""A process group of ranks that do not exist: nothing is sent, and this process is the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lightning_llm.errors import UnsupportedError


@contextmanager
def pretended_ranks(replicas: int, shards: int, tensor: int) -> Iterator[DeviceMesh]:
    """The mesh that ``FSDP2Strategy`` makes of so many ranks.

    Raises:
        RuntimeError: A process group is running already.
    """
    # Where torch keeps it; importing it makes the backend known.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UnsupportedError(
            "a plan needs a process group of its own, and one is running: plan in a process that "
            "does not train"
        )
    world_size = replicas * shards * tensor
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        names = ("replicate", "data_parallel", "tensor_parallel")
        yield init_device_mesh("cpu", (replicas, shards, tensor), mesh_dim_names=names)
    finally:
        dist.destroy_process_group()
