"""A run on paper: parameters, memory, traffic, time and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_llm.errors import InvalidValueError
from lightning_llm.planning.collectives import Collective, bytes_by_operation
from lightning_llm.planning.communication import plan_communication
from lightning_llm.planning.devices import Device
from lightning_llm.planning.fake_layers import sequence_multiple
from lightning_llm.planning.memory import Memory, plan_memory
from lightning_llm.planning.optimizer_states import optimizer_of, step_flops
from lightning_llm.planning.run import Run
from lightning_llm.planning.shards import shard_units
from lightning_llm.planning.time import ASSUMPTIONS, StepTime, plan_time
from lightning_llm.strategies.tensor_parallel import find_problems

# Of a device's memory: what its driver, the libraries and gaps between tensors take.
_RESERVED_BYTES, _USABLE = 1.5e9, 0.95


@dataclass(frozen=True)
class Plan:
    """What is expected of a run.

    Attributes:
        run: What was planned.
        device: Of every rank.
        parameters: Of the model; a tied head counts once.
        flops_per_token: The model's own count, forward and backward pass.
        memory: Of one rank.
        collectives: Of one step.
        time: Of one step.
        changes: What to change, in this order and together, so that it fits; empty where it does.
        changed_total: Bytes of a rank after them.
    """

    run: Run
    device: Device
    parameters: int
    flops_per_token: int
    memory: Memory
    collectives: list[Collective]
    time: StepTime
    changes: tuple[str, ...] = ()
    changed_total: int | None = None

    @property
    def memory_available(self) -> int:
        """Bytes of the device that a run can use."""
        return round(self.device.memory_bytes * _USABLE - _RESERVED_BYTES)

    @property
    def fits(self) -> bool:
        """Whether a rank has the memory."""
        return self.memory.total <= self.memory_available

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.run.tokens_per_step / self.time.total

    @property
    def mfu(self) -> float:
        """Of the bf16 peak; a ceiling, since the time leaves out what the assumptions name."""
        rate = self.tokens_per_second * self.flops_per_token
        return rate / (self.device.bf16_flops * self.run.world_size)

    @property
    def run_seconds(self) -> float | None:
        """Of the whole run; None where the recipe does not say how long it is."""
        return None if self.run.tokens is None else self.run.tokens / self.tokens_per_second

    @property
    def gpu_hours(self) -> float | None:
        """Of all ranks."""
        seconds = self.run_seconds
        return None if seconds is None else seconds * self.run.world_size / 3600

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``plan --format json`` writes it."""
        run, memory, seconds = self.run, self.memory, self.run_seconds
        parts = ("weights", "gradients", "optimizer", "activations", "logits", "total")
        extra = ("gathered", "accumulated", "working", "on_host", "logits_whole")
        return {
            "parameters": self.parameters,
            "flops_per_token": self.flops_per_token,
            "memory_bytes_per_rank": {
                **{name: getattr(memory, name) for name in parts + extra},
                "activations_by_checkpointing": memory.activations_by_checkpointing,
                "available": self.memory_available,
            },
            "communication_bytes_per_step": bytes_by_operation(self.collectives),
            "collectives": [asdict(collective) for collective in self.collectives],
            "step_seconds": self.time.total,
            "step_seconds_by_part": asdict(self.time),
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_per_rank": self.tokens_per_second / run.world_size,
            "mfu_ceiling": self.mfu,
            "tokens_per_step": run.tokens_per_step,
            "tokens": run.tokens,
            "days": None if seconds is None else seconds / 86400,
            "gpu_hours": self.gpu_hours,
            "fits": self.fits,
            "changes_to_fit": list(self.changes),
            "total_after_changes": self.changed_total,
            "world_size": run.world_size,
            "device": self.device.name,
            "strategy": run.parallelism.kind,
            "shards": run.parallelism.shards,
            "replicas": run.parallelism.replicas,
            "tensor_parallel": run.parallelism.tensor,
            "context_parallel": run.parallelism.context,
            "activation_checkpointing": run.parallelism.activation_checkpointing,
            "compile": run.parallelism.compile,
            "precision": run.numerics.name,
            "micro_batch_size": run.micro_batch_size,
            "seq_len": run.seq_len,
            "accumulate_grad_batches": run.accumulate_grad_batches,
            "assumptions": list(ASSUMPTIONS),
        }


def make_plan(run: Run, device: Device) -> Plan:
    """Plan a run on a device; nothing is trained and no weight has memory.

    Raises:
        ValueError: The module is no ``CausalLM``, or its parts do not go together.
        RuntimeError: A process group is running in this process.
    """
    config = getattr(getattr(run.module, "model", None), "config", None)
    if config is None or not hasattr(run.module, "flops_per_token"):
        raise InvalidValueError(
            f"{type(run.module).__name__} cannot be planned: its activations and operations are "
            f"not known; a plan needs lightning_llm.CausalLM or a subclass"
        )
    if run.seq_len > config.max_seq_len:
        raise InvalidValueError(
            f"seq_len={run.seq_len} is longer than the model's max_seq_len={config.max_seq_len}; "
            f"lower seq_len or raise config.max_seq_len"
        )
    _check_sequences(run)
    plan = _plan(run, device)
    if plan.fits:
        return plan
    changed = plan
    words: dict[str, str] = {}
    tried: dict[str, str] = {}
    for subject, word, changed_run in _remedies(run, device):
        tried.pop(subject, None)  # at its place in the order, in place of what it had before
        tried[subject] = word
        better = _plan(changed_run, device)
        if better.memory.total < changed.memory.total:
            changed, words = better, dict(tried)
        if better.fits:
            break
    return replace(plan, changes=tuple(words.values()), changed_total=changed.memory.total)


def _check_sequences(run: Run) -> None:
    tensor, context = run.parallelism.tensor, run.parallelism.context
    multiple = sequence_multiple(tensor, context)
    if run.seq_len % multiple == 0:
        return
    usable = run.seq_len // multiple * multiple or multiple
    sizes = [f"tensor_parallel_size={tensor}"] if tensor > 1 else []
    sizes += [f"context_parallel_size={context}"] if context > 1 else []
    verb = "splits" if len(sizes) == 1 else "split"
    of = "it" if multiple == tensor else str(multiple)
    raise InvalidValueError(
        f"{' and '.join(sizes)} {verb} sequences, and seq_len={run.seq_len} is no multiple of "
        f"{of}; use seq_len={usable}"
    )


def _plan(run: Run, device: Device) -> Plan:
    units = shard_units(run.module, run.parallelism)
    optimizer = optimizer_of(run.module)
    memory = plan_memory(run, units, optimizer)
    collectives = plan_communication(run, units, optimizer)
    states = memory.weights + memory.gradients + memory.optimizer
    return Plan(
        run=run,
        device=device,
        parameters=sum(parameter.numel() for parameter in run.module.parameters()),
        flops_per_token=int(run.module.flops_per_token(run.seq_len)),
        memory=memory,
        collectives=collectives,
        time=plan_time(run, units, collectives, states, device, step_flops(optimizer)),
    )


def _remedies(run: Run, device: Device) -> Iterator[tuple[str, str, Run]]:
    """Changes that save memory, each on top of those before, the cheapest first.

    Yields what is changed, of which the last change counts, how it is told, and the changed run.
    """
    parallel = run.parallelism
    if parallel.kind != "fsdp2" and run.world_size > 1:
        parallel = replace(parallel, kind="fsdp2", shards=run.world_size, replicas=1)
        run = replace(run, parallelism=parallel)
        yield "strategy", "shard the model: --config recipes/hardware/fsdp2.yaml", run
    waits = run.accumulate_grad_batches > 1 and not parallel.reduce_every_micro_batch
    if parallel.kind == "fsdp2" and waits:
        parallel = replace(parallel, reduce_every_micro_batch=True)
        run = replace(run, parallelism=parallel)
        yield "reduction", "strategy reduce_every_micro_batch: true", run
    for mode in ("selective", "full"):
        if parallel.activation_checkpointing in (mode, "full"):
            continue
        parallel = replace(parallel, activation_checkpointing=mode)
        run = replace(run, parallelism=parallel)
        yield "checkpointing", f"strategy activation_checkpointing: {mode}", run
    while run.micro_batch_size > 1:
        size = run.micro_batch_size // 2
        more = run.accumulate_grad_batches * run.micro_batch_size // size
        run = replace(run, micro_batch_size=size, accumulate_grad_batches=more)
        words = f"micro_batch_size: {size} with accumulate_grad_batches: {more}"
        yield "micro-batch", words, run
        if parallel.kind == "fsdp2" and not parallel.reduce_every_micro_batch:
            parallel = replace(parallel, reduce_every_micro_batch=True)
            run = replace(run, parallelism=parallel)
            yield "reduction", "strategy reduce_every_micro_batch: true", run
    if parallel.replicas > 1 and parallel.kind == "fsdp2":
        parallel = replace(parallel, shards=run.world_size // parallel.tensor, replicas=1)
        run = replace(run, parallelism=parallel)
        yield "replicas", "strategy replicate_size: 1", run
    if parallel.kind == "fsdp2" and not parallel.reduce_every_micro_batch:
        # More micro-batches follow, over which whole gradients would be kept.
        parallel = replace(parallel, reduce_every_micro_batch=True)
        run = replace(run, parallelism=parallel)
        yield "reduction", "strategy reduce_every_micro_batch: true", run
    # One or the other: sharing sequences costs less speed, splitting layers saves more.
    for shared in _share_further(run, device):
        words = f"strategy context_parallel_size: {shared.parallelism.context} with "
        words += f"accumulate_grad_batches: {shared.accumulate_grad_batches}"
        yield "ranks of a sequence", words, shared
    for split in _split_further(run, device):
        run, parallel = split, split.parallelism
        words = f"strategy tensor_parallel_size: {parallel.tensor} with "
        words += f"accumulate_grad_batches: {run.accumulate_grad_batches}"
        yield "ranks of a sequence", words, run
    yield from _more_devices(run)


def _more_devices(run: Run) -> Iterator[tuple[str, str, Run]]:
    """The run with twice, four times, ... as many devices, and as large a step."""
    parallel = run.parallelism
    for factor in (2, 4, 8, 16, 32, 64):
        grown = run.world_size * factor
        shards = grown // parallel.tensor
        wider = replace(parallel, kind="fsdp2", shards=shards, replicas=1)
        fewer = max(1, run.accumulate_grad_batches // factor)
        words = f"{grown} devices, sharded (--config recipes/hardware/fsdp2.yaml)"
        if fewer != run.accumulate_grad_batches:
            words += f" with accumulate_grad_batches: {fewer}"
        changed = replace(run, parallelism=wider, accumulate_grad_batches=fewer)
        yield "devices", words, replace(changed, world_size=grown)


def _share_further(run: Run, device: Device) -> Iterator[Run]:
    """The run with twice, four times, ... as many ranks that share every sequence, of a machine."""
    parallel, context = run.parallelism, run.parallelism.context * 2
    tensor = parallel.tensor
    if run.module.model.config.n_experts:
        return
    while parallel.kind == "fsdp2" and context * tensor <= device.per_node:
        if parallel.shards % context or run.seq_len % sequence_multiple(tensor, context):
            return
        more = run.accumulate_grad_batches * 2
        parallel = replace(parallel, context=context)
        run = replace(run, parallelism=parallel, accumulate_grad_batches=more)
        yield run
        context *= 2


def _split_further(run: Run, device: Device) -> Iterator[Run]:
    """The run with twice, four times, ... as many ranks that share every layer, of one machine."""
    parallel, tensor = run.parallelism, run.parallelism.tensor * 2
    context = parallel.context
    while parallel.kind == "fsdp2" and tensor * context <= device.per_node:
        if run.world_size % (tensor * context) or run.seq_len % sequence_multiple(tensor, context):
            return
        if find_problems(run.module.model.config, tensor):
            return
        parallel = replace(parallel, tensor=tensor, shards=run.world_size // tensor)
        more = run.accumulate_grad_batches * 2
        run = replace(run, parallelism=parallel, accumulate_grad_batches=more)
        yield run
        tensor *= 2
