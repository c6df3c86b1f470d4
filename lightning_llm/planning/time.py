"""Seconds of a step: work divided by rates that are lower than a data sheet's.

A sum of what the device does one after the other, and of the communication that nothing hides.
The rates are assumptions, listed in :data:`ASSUMPTIONS` and printed with every plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_llm.models.flops import flops_per_token, matmul_parameters
from lightning_llm.planning.collectives import Collective
from lightning_llm.planning.devices import Device
from lightning_llm.planning.run import Run
from lightning_llm.planning.shards import Unit

# Shares of the data sheet's rates. Of products: below a width, that of wider ones last.
_PRODUCTS = ((1024, 0.62), (2048, 0.66), (math.inf, 0.70))
_ATTENTION = 0.38  # of the products of attention, masked half left out
_FLOAT8 = 0.60
_BANDWIDTH = 0.90
_LINK = 0.80
# Bytes per token, layer and unit of width that elementwise operations read and write.
_FUSED, _EAGER = 130.0, 300.0
_LOSS = 6.0  # per token and word of the vocabulary
_ATTENTION_BACKWARD = 3.5 / 3  # the backward pass computes the scores again
_HOST_LINK = 20e9  # bytes/s to the host's memory and back, its arithmetic included
# Seconds until a collective's first byte: per halving of the ranks, and per machine on the ring.
_LATENCY, _LATENCY_PER_NODE = 10e-6, 2e-6

ASSUMPTIONS = (
    "products at 62 % (width below 1,024), 66 % (below 2,048) or 70 % of the bf16 peak, where the "
    "width is divided by the ranks that share a layer, float8 ones at 60 % of theirs; those of "
    "Muon by every rank, in bfloat16; attention at 38 %, half of the scores skipped",
    f"elementwise traffic of {_FUSED:.0f} (compiled) or {_EAGER:.0f} (eager) bytes per token, "
    "layer and unit of width, and 6 bytes per word of the vocabulary for the loss, at 90 % of the "
    "memory bandwidth",
    "rings at 80 % of the link, between machines of all network adapters of one; what blocks "
    "gather and reduce hides behind their arithmetic, the rest does not, and nothing of what ranks "
    "that share layers or sequences send each other",
    "no time for data, logging, validation, checkpoints, stragglers or failures",
)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step.

    Attributes:
        products: Matrix products, with what checkpointing repeats.
        attention: Scores and values.
        memory: Elementwise operations and the loss.
        optimizer: Reading and writing weights, gradients and states.
        communication: All collectives, were they alone.
        exposed: The part of them that nothing hides.
    """

    products: float
    attention: float
    memory: float
    optimizer: float
    communication: float
    exposed: float

    @property
    def total(self) -> float:
        """Of the step."""
        return self.products + self.attention + self.memory + self.optimizer + self.exposed


def plan_time(
    run: Run,
    units: list[Unit],
    collectives: list[Collective],
    state_bytes: int,
    device: Device,
    optimizer_flops: int = 0,
) -> StepTime:
    """Predict a step.

    Args:
        run: The run.
        units: Its weights.
        collectives: Of a step.
        state_bytes: Weights, gradients and optimizer states of a rank.
        device: Of every rank.
        optimizer_flops: Of the optimizer's matrix products, in bfloat16, on every rank.
    """
    config = run.module.model.config
    # Ranks that share layers divide the arithmetic of the same tokens; those that share sequences
    # have tokens of their own, whose scores together are 1 / N of all.
    tokens = run.tokens_per_rank * run.accumulate_grad_batches / run.parallelism.tensor
    repeated_products, repeated_attention = {
        "none": (0.0, 0.0),
        "selective": (0.5 / 3, 0.0),
        "full": (1 / 3, 1 / 3),
    }[run.parallelism.activation_checkpointing]
    head = 6 * config.vocab_size * config.dim
    matmuls = 6 * matmul_parameters(config)
    scores = flops_per_token(config, run.seq_len, causal=True) - matmuls
    peak, share = _products_rate(run, device)
    in_blocks = (matmuls - head) * (1 + repeated_products)
    fast = device.fp8_speedup * _FLOAT8 / share if run.numerics.float8 is not None else 1.0
    products = tokens * (in_blocks / max(fast, 1.0) + head) / (peak * share)
    attention = tokens * scores * (_ATTENTION_BACKWARD + repeated_attention) / (peak * _ATTENTION)
    traffic = (_FUSED if run.parallelism.compile else _EAGER) * config.n_layers * config.dim
    traffic *= (1 + repeated_products) * run.numerics.compute.itemsize / 2
    traffic += _LOSS * config.vocab_size * run.numerics.compute.itemsize / 2
    memory = tokens * traffic / (device.memory_bandwidth * _BANDWIDTH)
    # States are read and written, gradients read and cleared.
    optimizer = 2 * state_bytes / (device.memory_bandwidth * _BANDWIDTH)
    optimizer += optimizer_flops / (device.bf16_flops * _share_of_peak(config.dim))
    if run.parallelism.cpu_offload:
        optimizer += 2 * state_bytes / _HOST_LINK
    hidden = sum(collective_seconds(c, run, device) for c in collectives if c.overlaps)
    bare = sum(collective_seconds(c, run, device) for c in collectives if not c.overlaps)
    blocks = max(1, len(units) - 1)
    # DDP reduces in the backward pass of the last micro-batch alone.
    behind = products + attention + memory
    if run.parallelism.kind == "ddp":
        behind *= 2 / 3 / run.accumulate_grad_batches
    exposed = bare + max(hidden - behind, hidden / (3 * blocks))
    return StepTime(products, attention, memory, optimizer, hidden + bare, exposed)


def _products_rate(run: Run, device: Device) -> tuple[float, float]:
    """Peak of the dtype, and the share of it that products of this width reach."""
    width = run.module.model.config.dim // run.parallelism.tensor
    narrow = run.numerics.compute.itemsize < 4
    return (device.bf16_flops if narrow else device.fp32_flops), _share_of_peak(width)


def _share_of_peak(width: int) -> float:
    return next(share for bound, share in _PRODUCTS if width < bound)


def collective_seconds(collective: Collective, run: Run, device: Device) -> float:
    """Time of a step's calls of one kind, alone on the links."""
    ranks, beside = collective.ranks, _in_a_machine(collective, run, device)
    nodes, rate = math.ceil(ranks / beside), device.link_bandwidth
    if nodes > 1:  # the groups of a machine share its adapters
        rate = min(rate, beside * device.network_bandwidth)
    passes = 2 if collective.operation == "all_reduce" else 1
    sent = passes * collective.bytes * (ranks - 1) / ranks
    latency = _LATENCY * math.log2(ranks) + _LATENCY_PER_NODE * nodes
    return sent / (rate * _LINK) + passes * collective.calls * latency


def _in_a_machine(collective: Collective, run: Run, device: Device) -> int:
    """Ranks of a group in one machine: those that share layers lie side by side, then shards.

    Of these the ones that share sequences are neighbours.
    """
    spread = run.parallelism
    strides = {"shards": spread.tensor, "context": spread.tensor}
    strides["replicas"] = spread.tensor * spread.shards
    stride = strides.get(collective.over, 1)
    return min(collective.ranks, max(1, device.per_node // stride))
