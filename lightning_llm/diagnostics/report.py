"""What an examination found: as data for programs, as aligned text for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_llm.diagnostics.setup import Setup

UNKNOWN = "not known"


@dataclass(frozen=True)
class Report:
    """What an examination found; ``None`` is not known.

    Attributes:
        setup: How the run is set up.
        steps: Optimizer steps that were timed, after the warm-up.
        tokens_per_second: Tokens without padding, over all ranks.
        tokens_per_step: The same, per optimizer step.
        step_seconds: Wall time of an optimizer step.
        seconds: The same by phase: data, forward, backward, optimizer, framework. With manual
            optimization everything inside the training step is ``forward``.
        callback_seconds: What callbacks take of the framework's part, per step.
        mfu: Share of the device's peak arithmetic, attention counted in full.
        peak_memory_bytes: Of the accelerator; on a CPU of the process.
        graphs: Compiled graphs.
        graph_breaks: Places where compiled code returned to Python.
        recompiles: Graphs compiled after the warm-up.
        host_syncs_per_step: Waits of the host for the device in a step between log points.
        host_syncs_at_log_point: The same in a step at whose end is a log point.
        host_sync_places: Count, kind and line of code of each, the most frequent first.
        padding_fraction: Share of positions that are padding.
        document_leak: Whether tokens see other documents that the batch tells apart.
        causal: Whether no token sees what comes after it.
        documents: What the test of documents found, in words.
        break_reasons: The compiler's reasons for graph breaks.
        recompile_reasons: The compiler's reasons for recompilations.
        allocator_speedup: Speed with glibc's malloc settings over speed without them.
        advice: What to switch on or mend next, the most valuable first.
    """

    setup: Setup
    steps: int = 0
    tokens_per_second: float | None = None
    tokens_per_step: float | None = None
    step_seconds: float | None = None
    seconds: dict[str, float | None] = field(default_factory=dict)
    callback_seconds: dict[str, float] = field(default_factory=dict)
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    graphs: int = 0
    graph_breaks: int | None = None
    recompiles: int | None = None
    host_syncs_per_step: float | None = None
    host_syncs_at_log_point: float | None = None
    host_sync_places: list[dict[str, Any]] = field(default_factory=list)
    padding_fraction: float | None = None
    document_leak: bool | None = None
    causal: bool | None = None
    documents: str = UNKNOWN
    break_reasons: list[str] = field(default_factory=list)
    recompile_reasons: list[str] = field(default_factory=list)
    allocator_speedup: float | None = None
    advice: list[str] = field(default_factory=list)

    def share_of(self, phase: str) -> float:
        """Share of a step that a phase takes; 0 where it is not known."""
        seconds = self.seconds.get(phase)
        return seconds / self.step_seconds if seconds and self.step_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, the setup's fields among the others."""
        data = asdict(self)
        return {**data.pop("setup"), **data}


def as_text(report: Report) -> str:
    """Return the report as aligned lines, the advice below them."""
    rows = [*_setup_rows(report), *_speed_rows(report), *_fault_rows(report)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}".rstrip() for name, value in rows]
    lines += ["", "what to do next" if report.advice else "nothing to improve was found"]
    lines += [f"{number}. {text}" for number, text in enumerate(report.advice, 1)]
    return "\n".join(lines) + "\n"


def _setup_rows(report: Report) -> list[tuple[str, str]]:
    setup = report.setup
    devices = f", {setup.world_size} processes" if setup.world_size > 1 else ""
    batch = (
        f"{setup.micro_batch_size} x {setup.seq_len} tokens"
        if setup.seq_len is not None
        else UNKNOWN
    )
    if setup.accumulate > 1:
        batch += f", {setup.accumulate} of them per step"
    frozen = setup.parameters - setup.trainable_parameters
    return [
        ("device", f"{setup.device}{devices}"),
        ("precision", setup.precision),
        ("strategy", f"{setup.strategy}, {'compiled' if setup.compiles else 'not compiled'}"),
        (
            "parameters",
            f"{setup.parameters:,}" + (f", {frozen:,} of them frozen" if frozen else ""),
        ),
        ("optimizer", setup.optimizer or UNKNOWN),
        ("micro-batch", batch),
        ("allocator", setup.allocator or UNKNOWN),
    ]


def _speed_rows(report: Report) -> list[tuple[str, str]]:
    memory = report.peak_memory_bytes
    step = report.step_seconds
    whole = f"{step * 1e3:,.1f} ms over {report.steps} steps" if step else UNKNOWN
    rows = [
        ("tokens per second", _number(report.tokens_per_second, ",.0f")),
        ("MFU", _number(report.mfu, ".1%")),
        ("peak memory", f"{memory / 2**20:,.0f} MiB" if memory else UNKNOWN),
        ("step", whole),
    ]
    for phase, seconds in report.seconds.items():
        if seconds is None:
            known = "inside forward (manual optimization)" if step else UNKNOWN
            rows.append((f"  {phase}", known))
        else:
            rows.append((f"  {phase}", f"{seconds * 1e3:10,.2f} ms {report.share_of(phase):6.1%}"))
    return rows


def _fault_rows(report: Report) -> list[tuple[str, str]]:
    graphs = f" in {report.graphs} graphs" if report.graphs else ""
    rows = [
        ("graph breaks", _number(report.graph_breaks, "d") + graphs),
        ("recompiles", _number(report.recompiles, "d")),
        ("host syncs per step", _number(report.host_syncs_per_step, ".3g")),
        ("  with a log point", _number(report.host_syncs_at_log_point, ".3g")),
    ]
    rows += [
        (f"  {place['count']} x {place['what']}", place["where"])
        for place in report.host_sync_places
    ]
    leak = {True: "yes: ", False: "no: ", None: "not tested: "}[report.document_leak]
    order = {True: "no", False: "yes", None: UNKNOWN}[report.causal]
    return [
        *rows,
        ("padding", _number(report.padding_fraction, ".1%")),
        ("document leak", leak + report.documents),
        ("tokens see the future", order),
    ]


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)
