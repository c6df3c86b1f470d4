"""What the compiler did while a model trained: graph breaks, and compilation that comes late."""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

from torch._dynamo.utils import counters, get_compilation_metrics


class Compilation(NamedTuple):
    """Counts, and the first line of the compiler's reason for each kind."""

    graphs: int
    graph_breaks: int
    recompiles: int
    break_reasons: list[str]
    recompile_reasons: list[str]


class CompilationWatch:
    """Counts from its construction on; ``settled`` says that from now on nothing should compile.

    Compilation before that is no recompilation: blocks of several kinds (with and without a
    window) share a function and each needs its own graph in the first step.
    """

    def __init__(self) -> None:
        self._breaks = Counter(counters["graph_break"])
        self._graphs = _graphs()
        self._settled: tuple[int, float] | None = None

    def settled(self) -> None:
        """Count graphs from now on as recompilations."""
        self._settled = (_graphs(), time.time())

    def result(self) -> Compilation:
        """Return what happened so far."""
        breaks = Counter(counters["graph_break"]) - self._breaks
        graphs, since = self._settled or (_graphs(), time.time())
        reasons = [
            metrics.recompile_reason or metrics.co_name or ""
            for metrics in get_compilation_metrics()
            if (metrics.start_time_us or 0) / 1e6 >= since and metrics.is_forward is not False
        ]
        return Compilation(
            graphs=_graphs() - self._graphs,
            graph_breaks=sum(breaks.values()),
            recompiles=max(0, _graphs() - graphs),
            break_reasons=[_first_line(reason) for reason, _ in breaks.most_common()],
            recompile_reasons=[_first_line(reason) for reason in dict.fromkeys(reasons)],
        )


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def _first_line(text: str) -> str:
    """The first line that says something, without the index the compiler puts before it."""
    lines = [line.strip(" -") for line in text.splitlines()]
    return next((line for line in lines if line), "")[:200]
