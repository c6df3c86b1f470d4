"""The collectives of one optimizer step, as the strategies issue them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.distributed.tensor import _redistribute

from lightning_llm.planning.collectives import Collective
from lightning_llm.planning.run import Run
from lightning_llm.planning.shards import Unit
from lightning_llm.planning.split_layers import plan_split_layers

# Older versions of torch sum over the shards first, then over the ranks that share layers.
_SUMS_OVER_TWO_AT_ONCE = hasattr(_redistribute, "_get_flattened_mesh_by_layout")


def plan_communication(run: Run, units: list[Unit], optimizer: Any) -> list[Collective]:
    """The collectives of a step, of size above zero and with more than one rank."""
    kind = run.parallelism.kind
    if kind == "single" or run.world_size == 1:
        return []
    planned = _ddp(run, units) if kind == "ddp" else [*_fsdp2(run, units)]
    if kind == "fsdp2":
        planned += _matrices(run, units, optimizer)
        if run.clips_gradients:
            planned += _norm(run, units)
    if run.parallelism.tensor * run.parallelism.context > 1:
        planned += plan_split_layers(run)
    if run.data_ranks > 1:
        # The number of target tokens, by which gradients are divided.
        planned.append(Collective("all_reduce", "all", run.world_size, 1, 8, overlaps=False))
    return [each for each in planned if each.bytes and each.ranks > 1]


def _ddp(run: Run, units: list[Unit]) -> list[Collective]:
    """All gradients, in buckets of 25 MiB, after the last micro-batch."""
    trainable = {name for name, p in run.module.named_parameters() if p.requires_grad}
    elements = sum(w.whole for unit in units for w in unit.weights if w.name in trainable)
    size = elements * run.reduce_dtype.itemsize
    calls = max(1, round(size / (25 * 2**20)))
    return [Collective("all_reduce", "all", run.world_size, calls, size)]


def _fsdp2(run: Run, units: list[Unit]) -> Iterator[Collective]:
    parallelism, micro_batches = run.parallelism, run.accumulate_grad_batches
    shards, replicas = parallelism.shards, parallelism.replicas
    *blocks, rest = units
    width, reduced = run.param_dtype.itemsize, run.reduce_dtype.itemsize
    in_blocks = sum(unit.local for unit in blocks) * shards
    in_rest = rest.local * shards

    def gather(elements: int, calls: int, overlaps: bool, ranks: int = shards) -> Collective:
        calls, size = calls * micro_batches, elements * width * micro_batches
        return Collective("all_gather", "shards", ranks, calls, size, overlaps)

    yield gather(in_rest, 1, overlaps=False)
    yield gather(in_blocks, len(blocks), overlaps=True)
    again = parallelism.reshard_after_forward
    if again is True:
        yield gather(in_blocks, len(blocks), overlaps=True)
    elif again is not False:  # spread over so many ranks of a machine
        yield gather(in_blocks, len(blocks), overlaps=True, ranks=again)

    reductions = micro_batches if parallelism.reduce_every_micro_batch else 1
    for elements, calls, overlaps in ((in_blocks, len(blocks), True), (in_rest, 1, False)):
        size = elements * reduced * reductions
        calls *= reductions
        yield Collective("reduce_scatter", "shards", shards, calls, size, overlaps)
        share = size // shards
        yield Collective("all_reduce", "replicas", replicas, calls, share, overlaps)


def _matrices(run: Run, units: list[Unit], optimizer: Any) -> list[Collective]:
    """Muon gathers what it orthogonalizes."""
    matrices = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("use_muon")
        for parameter in group["params"]
    }
    names = {name for name, p in run.module.named_parameters() if id(p) in matrices}
    weights = [w for unit in units for w in unit.weights if w.name in names]
    shards, tensor = run.parallelism.shards, run.parallelism.tensor
    size = sum(weight.local for weight in weights) * shards * run.numerics.states.itemsize
    count = len(weights)
    return [
        Collective("all_gather", "shards", shards, count, size, overlaps=False),
        Collective("all_gather", "tensor", tensor, count, size * tensor, overlaps=False),
    ]


def _norm(run: Run, units: list[Unit]) -> list[Collective]:
    """The gradient norm: one float32 number for each weight, over all that hold parts of it."""
    trainable = {name for name, p in run.module.named_parameters() if p.requires_grad}
    size = 4 * sum(w.name in trainable for unit in units for w in unit.weights)
    over = {"shards": run.parallelism.shards, "tensor": run.parallelism.tensor}
    if min(over.values()) > 1 and _SUMS_OVER_TWO_AT_ONCE:
        over = {"copy": over["shards"] * over["tensor"]}
    return [
        Collective("all_reduce", name, ranks, 1, size, overlaps=False)
        for name, ranks in over.items()
    ]
