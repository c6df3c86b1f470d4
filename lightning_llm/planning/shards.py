"""How many weights a rank holds: the module sharded on the meta device, ranks pretended."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_llm.planning.run import Parallelism
from lightning_llm.strategies.blocks import find_blocks


@dataclass(frozen=True)
class Weight:
    """One parameter.

    Attributes:
        name: In the module.
        whole: Its elements.
        local: Those of the rank that holds the most.
    """

    name: str
    whole: int
    local: int


@dataclass(frozen=True)
class Unit:
    """Weights that are gathered together: a block, or what belongs to none.

    Attributes:
        name: Of the block; empty for the rest.
        weights: Its parameters, shared ones once.
    """

    name: str
    weights: tuple[Weight, ...]

    @property
    def whole(self) -> int:
        """Elements of all its weights."""
        return sum(weight.whole for weight in self.weights)

    @property
    def local(self) -> int:
        """Elements on the rank that holds the most."""
        return sum(weight.local for weight in self.weights)


def shard_units(module: nn.Module, parallelism: Parallelism) -> list[Unit]:
    """The units of a module on the meta device: blocks in order, what belongs to none last.

    Under FSDP2 a copy of it is sharded with ``fully_shard``, as the strategy does, in a process
    group that has the asked number of ranks and sends nothing.

    Raises:
        RuntimeError: A process group is running already.
    """
    if parallelism.kind != "fsdp2":
        return _units(module, _blocks(module, parallelism))
    module = copy.deepcopy(module)
    blocks = find_blocks(module, parallelism.block_class)
    with _pretended_ranks(parallelism) as mesh:
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return _units(module, blocks)


def _blocks(module: nn.Module, parallelism: Parallelism) -> list[nn.Module]:
    try:
        return find_blocks(module, parallelism.block_class)
    except ValueError:  # only sharding needs them
        return []


def _units(module: nn.Module, blocks: list[nn.Module]) -> list[Unit]:
    names = {part: name for name, part in module.named_modules()}
    owner = {id(p): names[block] for block in blocks for p in block.parameters()}
    members: dict[str, list[Weight]] = {names[block]: [] for block in blocks}
    members[""] = []
    for name, parameter in module.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        weight = Weight(name, parameter.numel(), local.numel())
        members[owner.get(id(parameter), "")].append(weight)
    return [Unit(name, tuple(weights)) for name, weights in members.items()]


@contextmanager
def _pretended_ranks(parallelism: Parallelism) -> Iterator[DeviceMesh]:
    """A mesh of ranks that do not exist; this process is the first."""
    # Where torch keeps it; importing it makes the backend known.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError(
            "a plan needs a process group of its own, and one is running: plan in a process that "
            "does not train"
        )
    replicas, shards = parallelism.replicas, parallelism.shards
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=replicas * shards)
    try:
        if replicas > 1:
            names = ("replicate", "data_parallel")
            yield init_device_mesh("cpu", (replicas, shards), mesh_dim_names=names)
        else:
            yield init_device_mesh("cpu", (shards,), mesh_dim_names=("data_parallel",))
    finally:
        dist.destroy_process_group()
