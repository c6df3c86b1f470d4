"""Bytes that a rank needs, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_llm.planning.activations import MODES, Activations, trace_activations
from lightning_llm.planning.loss import chunked_logits_bytes, whole_logits_bytes
from lightning_llm.planning.optimizer_states import state_elements
from lightning_llm.planning.run import Run
from lightning_llm.planning.shards import Unit


@dataclass(frozen=True)
class Memory:
    """Bytes on the rank that holds most.

    Attributes:
        weights: As they are stored.
        gradients: That the optimizer reads.
        optimizer: Its states, and the masters of weights.
        activations: Kept from forward to backward pass, attention masks and autocast's copies
            of weights included.
        logits: Of the loss, with the gradients it makes on the way.
        gathered: Weights whole for a while, and gradients on their way to their shards.
        accumulated: Whole gradients kept over the micro-batches of a step.
        working: Of one block that is repeated in the backward pass.
        on_host: Part of the first three that lies in the host's memory.
        activations_by_checkpointing: ``activations`` and ``working`` under each mode.
        logits_whole: What ``logits`` would be without chunks.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int
    accumulated: int
    working: int
    on_host: int
    activations_by_checkpointing: dict[str, int]
    logits_whole: int

    @property
    def total(self) -> int:
        """All that lies on the device at the worst moment, were all of it there at once."""
        states = self.weights + self.gradients + self.optimizer - self.on_host
        passing = self.activations + self.logits + self.gathered + self.accumulated + self.working
        return states + passing


def plan_memory(run: Run, units: list[Unit], optimizer: Any) -> Memory:
    """Memory of a run whose units are :func:`~lightning_llm.planning.shards.shard_units`."""
    numerics, parallelism = run.numerics, run.parallelism
    local = sum(unit.local for unit in units)
    weights = local * numerics.weights.itemsize
    trainable = _trainable(run.module)
    trained = sum(w.local for unit in units for w in unit.weights if w.name in trainable)
    gradients = trained * _gradient_bytes(run)
    states = optimizer_bytes(run, units, optimizer)
    by_mode = {mode: trace_activations(run, mode) for mode in MODES}
    chosen = by_mode[parallelism.activation_checkpointing]  # type: ignore[index]
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=states,
        activations=round(chosen.kept),
        logits=chunked_logits_bytes(run),
        gathered=_gathered(run, units),
        accumulated=_accumulated(run, units),
        working=round(_working(parallelism.activation_checkpointing, chosen)),
        on_host=weights + gradients + states if parallelism.cpu_offload else 0,
        activations_by_checkpointing={
            mode: round(found.kept + _working(mode, found)) for mode, found in by_mode.items()
        },
        logits_whole=whole_logits_bytes(run),
    )


def optimizer_bytes(run: Run, units: list[Unit], optimizer: Any) -> int:
    """Bytes of optimizer state on a rank, with the masters of the weights."""
    per_element = state_elements(optimizer)
    names = {name: id(parameter) for name, parameter in run.module.named_parameters()}
    trainable = _trainable(run.module)
    elements = 0.0
    for unit in units:
        for weight in unit.weights:
            elements += per_element.get(names[weight.name], 0.0) * weight.local
            if run.numerics.masters and weight.name in trainable:
                elements += weight.local
    return round(elements * run.numerics.states.itemsize)


def _trainable(module: Any) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def _gradient_bytes(run: Run) -> int:
    """Per weight: those the backward pass leaves, and in DDP the buckets, if they are apart."""
    if run.parallelism.kind == "ddp":
        own = run.reduce_dtype.itemsize
        return own if run.parallelism.bucket_views else 2 * own
    return run.numerics.gradients.itemsize


def _working(mode: str, found: Activations) -> float:
    return 0.0 if mode == "none" else found.largest_block


def _gathered(run: Run, units: list[Unit]) -> int:
    """What belongs to no block stays whole in a step; of the blocks, two are, with gradients."""
    parallelism = run.parallelism
    if parallelism.kind != "fsdp2":
        return 0
    *blocks, rest = units
    padded = [unit.local * parallelism.shards for unit in blocks]
    width, reduced = run.param_dtype.itemsize, run.reduce_dtype.itemsize
    kept = sum(padded) if parallelism.reshard_after_forward is False else 2 * max(padded)
    if not isinstance(parallelism.reshard_after_forward, bool):
        kept += sum(padded) // parallelism.reshard_after_forward
    whole = rest.local * parallelism.shards
    kept += _embedding_gradient(run)
    return (kept + whole) * width + (max(padded) + whole) * (width + reduced)


def _embedding_gradient(run: Run) -> int:
    """Elements of a split embedding's gradient that a rank makes and has no rows for."""
    config, ranks = run.module.model.config, run.parallelism.tensor
    return int(config.vocab_size * config.dim * (ranks - 1) // ranks)


def _accumulated(run: Run, units: list[Unit]) -> int:
    waits = run.accumulate_grad_batches > 1 and not run.parallelism.reduce_every_micro_batch
    if run.parallelism.kind != "fsdp2" or not waits:
        return 0
    return sum(unit.local for unit in units) * run.parallelism.shards * run.reduce_dtype.itemsize
