"""How many weights a rank holds: the module sharded on the meta device, ranks pretended."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_llm.planning.living import local
from lightning_llm.planning.pretended_ranks import pretended_ranks
from lightning_llm.planning.run import Parallelism
from lightning_llm.strategies.blocks import find_blocks
from lightning_llm.strategies.sharding import placements
from lightning_llm.strategies.tensor_parallel import TensorParallel


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
        ValueError: Layers are to be split over ranks that they cannot be split over.
    """
    if parallelism.kind != "fsdp2":
        return _units(module, _blocks(module, parallelism))
    module = copy.deepcopy(module)
    blocks = find_blocks(module, parallelism.block_class)
    replicas, shards, tensor = parallelism.replicas, parallelism.shards, parallelism.tensor
    with pretended_ranks(replicas, shards, tensor) as ranks:
        mesh = ranks["data_parallel" if replicas == 1 else ("replicate", "data_parallel")]
        split = TensorParallel(module, ranks["tensor_parallel"]) if tensor > 1 else None
        place = placements(shards, parallelism.reshard_after_forward)
        for part in [*blocks, module]:
            if split is not None:
                split.split(part)
            fully_shard(part, mesh=mesh, shard_placement_fn=place)
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
        weight = Weight(name, parameter.numel(), local(parameter).numel())
        members[owner.get(id(parameter), "")].append(weight)
    return [Unit(name, tuple(weights)) for name, weights in members.items()]
