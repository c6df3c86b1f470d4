"""What ranks that share layers or sequences send each other: found by running layers on nothing.

A block runs forward and backward once on fake tensors, split by the strategy's own code in a
process group that sends nothing, and what it hands to the group is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_llm.planning.collectives import Collective
from lightning_llm.planning.fake_layers import (
    Sharing,
    autocast,
    block_inputs,
    block_length,
    fake_arithmetic,
    fake_block,
    fake_network,
    kinds_of_layers,
    network_inputs,
)
from lightning_llm.planning.living import Living, Sent, local
from lightning_llm.planning.loss import loss_chunks
from lightning_llm.planning.run import Run
from lightning_llm.strategies.checkpointing import call_plain, checkpointed


def plan_split_layers(run: Run) -> Iterator[Collective]:
    """The collectives of a step among ranks that share; the arithmetic waits for them."""
    parallelism, micro_batches = run.parallelism, run.accumulate_grad_batches
    ranks = {"tensor": parallelism.tensor, "context": parallelism.context}
    calls, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    summed = 0, 0  # gradients of weights that the ranks hold alike: their number, their elements
    with fake_arithmetic(run) as sharing:
        names = _names(sharing)
        parts = [(_run_ends(run, sharing), 1)]
        for layers in kinds_of_layers(run.module.model.config):
            parts.append((_run_block(run, layers[0], sharing), len(layers)))
    for (sent, partial), times in parts:
        for operation, size, group in sent:
            kind = operation, names[group]
            calls[kind] += times
            sizes[kind] += size * times
        summed = summed[0] + len(partial) * times, summed[1] + sum(partial) * times
    for kind in calls:
        operation, over = kind
        count, size = calls[kind] * micro_batches, sizes[kind] * micro_batches
        yield Collective(operation, over, ranks[over], count, size, overlaps=False)
    if parallelism.tensor > 1:
        yield _loss(run)
        yield _partial_gradients(run, *summed)
    # Of every micro-batch the loss and the targets, two float64 numbers.
    size = 2 * torch.float64.itemsize * micro_batches
    yield Collective("all_reduce", "context", ranks["context"], micro_batches, size, False)


def _names(sharing: Sharing) -> dict[str, str]:
    """What the process groups are called in a plan."""
    names: dict[str, str] = {}
    if sharing.layers is not None:
        names[sharing.layers.get_group().group_name] = "tensor"
    if sharing.sequences is not None:
        names[sharing.sequences.mesh.get_group().group_name] = "context"
    return names


def _run_block(run: Run, layer: int, sharing: Sharing) -> tuple[list[Sent], list[int]]:
    """What one call of a block and its backward pass send, and its partial gradients."""
    length = block_length(run)
    block, inputs = fake_block(run, layer, sharing), block_inputs(run, layer, length)
    call = checkpointed(call_plain, run.parallelism.activation_checkpointing)  # type: ignore[arg-type]
    with Living([]) as living:
        with autocast(run):
            output = call(block, *inputs)[0]
        output.backward(torch.empty_like(output))
    sent = [each._replace(bytes=each.bytes * run.seq_len // length) for each in living.sent]
    return sent, _partial(block)


def _run_ends(run: Run, sharing: Sharing) -> tuple[list[Sent], list[int]]:
    """The same of what belongs to no block, the loss left out."""
    network = fake_network(run, sharing)
    with Living([]) as living:
        with autocast(run):
            hidden = network.backbone(**network_inputs(run))
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
