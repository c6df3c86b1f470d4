"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_llm.planning.plan import Plan
from lightning_llm.planning.time import ASSUMPTIONS


def as_text(plan: Plan) -> str:
    """The plan for a terminal, in sections of two columns."""
    lines = [
        *_model(plan),
        *_memory(plan),
        *_communication(plan),
        *_time(plan),
        "",
        "Assumptions (a prediction, not a measurement)",
        *(f"  - {assumption}" for assumption in ASSUMPTIONS),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<28}{value:>16}  {remark}".rstrip()


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"


def _model(plan: Plan) -> Iterator[str]:
    run, spread = plan.run, plan.run.parallelism
    copies = f"{spread.shards} shards x {spread.replicas} copies" if spread.kind == "fsdp2" else ""
    compiled = "compiled" if spread.compile else "not compiled"
    yield f"{run.world_size:,} x {plan.device.name}, {spread.kind}, {run.numerics.name}, {compiled}"
    if copies:
        shared = f", every layer split over {spread.tensor}" if spread.tensor > 1 else ""
        shared += f", every sequence shared by {spread.context}" if spread.context > 1 else ""
        yield f"  {copies}{shared}"
    yield _row("parameters", f"{plan.parameters:,}")
    yield _row("FLOPs per token", f"{plan.flops_per_token:.4g}", "forward and backward pass")
    step = f"{run.micro_batch_size} x {run.seq_len} x {run.accumulate_grad_batches} micro-batches"
    alone = run.data_ranks == run.world_size
    groups = f"{run.data_ranks:,} {'ranks' if alone else 'groups of ranks'}"
    yield _row("tokens per step", f"{run.tokens_per_step:,}", f"{step} x {groups}")


def _memory(plan: Plan) -> Iterator[str]:
    memory, mode = plan.memory, plan.run.parallelism.activation_checkpointing
    yield ""
    yield "Memory per rank"
    yield _row("weights", _gb(memory.weights))
    yield _row("gradients", _gb(memory.gradients))
    yield _row("optimizer", _gb(memory.optimizer))
    others = ", ".join(
        f"{name} {_gb(size)}" for name, size in memory.activations_by_checkpointing.items()
    )
    yield _row("activations", _gb(memory.activations), f"checkpointing {mode}; all told: {others}")
    if memory.working:
        yield _row("one block repeated", _gb(memory.working))
    yield _row("logits", _gb(memory.logits), f"without chunks {_gb(memory.logits_whole)}")
    if memory.gathered:
        yield _row("gathered weights", _gb(memory.gathered), "and their gradients on the way")
    if memory.accumulated:
        remark = "over micro-batches; reduce_every_micro_batch: true saves them"
        yield _row("whole gradients", _gb(memory.accumulated), remark)
    if memory.on_host:
        yield _row("of these on the host", _gb(memory.on_host))
    yield _row("total", _gb(memory.total), f"of {_gb(plan.memory_available)} that can be used")
    yield _row("fits", "yes" if plan.fits else "NO")
    if plan.changes:
        assert plan.changed_total is not None
        enough = plan.changed_total <= plan.memory_available
        yield f"  to change, together{'' if enough else ' (still not enough: a larger device)'}:"
        yield from (f"    - {change}" for change in plan.changes)
        yield _row("total after that", _gb(plan.changed_total))


def _communication(plan: Plan) -> Iterator[str]:
    yield ""
    yield "Communication of a rank per step"
    if not plan.collectives:
        yield "  none"
    for each in plan.collectives:
        where = f"{each.calls:,} calls, {each.ranks:,} ranks ({each.over})"
        yield _row(each.operation, _gb(each.bytes), where)


def _time(plan: Plan) -> Iterator[str]:
    time = plan.time
    yield ""
    yield "Time of a step"
    for name in ("products", "attention", "memory", "optimizer"):
        yield _row(name, f"{getattr(time, name) * 1e3:,.1f} ms")
    alone = f"of {time.communication * 1e3:,.1f} ms, the rest hidden"
    yield _row("communication", f"{time.exposed * 1e3:,.1f} ms", alone)
    yield _row("step", f"{time.total * 1e3:,.1f} ms")
    per_rank = f"{plan.tokens_per_second / plan.run.world_size:,.0f} per rank"
    yield _row("tokens/s", f"{plan.tokens_per_second:,.0f}", per_rank)
    yield _row("MFU at most", f"{100 * plan.mfu:.1f} %", "of the bf16 peak")
    if plan.run_seconds is None or plan.gpu_hours is None:
        yield _row("GPU-hours", "not known", "set max_steps or max_tokens, or give --tokens")
    else:
        days = f"{plan.run_seconds / 86400:,.2f} days for {plan.run.tokens:,} tokens"
        yield _row("GPU-hours", f"{plan.gpu_hours:,.1f}", days)
