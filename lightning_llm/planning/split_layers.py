"""What ranks that share every layer send each other: found by running the layers on nothing.

A block runs forward and backward once on fake tensors, split by the strategy's own code in a
process group that sends nothing, and what it hands to the group is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lightning_llm.planning.collectives import Collective
from lightning_llm.planning.fake_layers import (
    autocast,
    block_inputs,
    block_length,
    fake_arithmetic,
    fake_block,
    fake_network,
    kinds_of_layers,
    token_ids,
)
from lightning_llm.planning.living import Living, local
from lightning_llm.planning.loss import loss_chunks
from lightning_llm.planning.run import Run
from lightning_llm.strategies.checkpointing import call_plain, checkpointed


def plan_split_layers(run: Run) -> Iterator[Collective]:
    """The collectives of a step among ranks that share layers; the arithmetic waits for them."""
    ranks, micro_batches = run.parallelism.tensor, run.accumulate_grad_batches
    calls, sizes = Counter[str](), Counter[str]()
    summed = 0, 0  # gradients of weights that the ranks hold alike: their number, their elements
    with fake_arithmetic(run) as mesh:
        assert mesh is not None
        parts = [(_run_ends(run, mesh), 1)]
        for layers in kinds_of_layers(run.module.model.config):
            parts.append((_run_block(run, layers[0], mesh), len(layers)))
    for (sent, partial), times in parts:
        for operation, size in sent:
            calls[operation] += times
            sizes[operation] += size * times
        summed = summed[0] + len(partial) * times, summed[1] + sum(partial) * times
    for operation in calls:
        count, size = calls[operation] * micro_batches, sizes[operation] * micro_batches
        yield Collective(operation, "tensor", ranks, count, size, overlaps=False)
    yield _loss(run)
    yield _partial_gradients(run, *summed)


def _run_block(run: Run, layer: int, mesh: DeviceMesh) -> tuple[list[tuple[str, int]], list[int]]:
    """What one call of a block and its backward pass send, and its partial gradients."""
    length = block_length(run)
    block, inputs = fake_block(run, layer, mesh), block_inputs(run, layer, length)
    call = checkpointed(call_plain, run.parallelism.activation_checkpointing)  # type: ignore[arg-type]
    with Living([]) as living:
        with autocast(run):
            output = call(block, *inputs)[0]
        output.backward(torch.empty_like(output))
    sent = [(operation, size * run.seq_len // length) for operation, size in living.sent]
    return sent, _partial(block)


def _run_ends(run: Run, mesh: DeviceMesh) -> tuple[list[tuple[str, int]], list[int]]:
    """The same of what belongs to no block, the loss left out."""
    network = fake_network(run, mesh)
    with Living([]) as living:
        with autocast(run):
            hidden = network.backbone(token_ids(run))
        hidden.backward(torch.empty_like(hidden))
    return living.sent, _partial(network)


def _partial(module: nn.Module) -> list[int]:
    """Elements of each gradient that is a sum over the ranks, as those of norms are."""
    gradients = [p.grad for p in module.parameters() if isinstance(p.grad, DTensor)]
    return [local(g).numel() for g in gradients if any(p.is_partial() for p in g.placements)]


def _loss(run: Run) -> Collective:
    """Of each chunk the largest logits, and three sums per token; then the hidden gradient."""
    chunks = loss_chunks(run)
    elements = run.tokens_per_rank * (1 + 3 + run.module.model.config.dim)
    calls = (2 * chunks.number + 1) * run.accumulate_grad_batches
    size = elements * torch.float32.itemsize * run.accumulate_grad_batches
    return Collective("all_reduce", "tensor", run.parallelism.tensor, calls, size, overlaps=False)


def _partial_gradients(run: Run, count: int, elements: int) -> Collective:
    """Summed when FSDP2 reduces them, in the dtype they were accumulated in."""
    parallelism, width, times = run.parallelism, run.param_dtype.itemsize, 1
    if parallelism.reduce_every_micro_batch:
        times = run.accumulate_grad_batches
    elif run.accumulate_grad_batches > 1:
        width = run.reduce_dtype.itemsize
    size = elements * width * times
    ranks = parallelism.tensor
    return Collective("all_reduce", "tensor", ranks, count * times, size, overlaps=False)
