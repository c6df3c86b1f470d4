"""Which charts some runs have: what was not logged has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_llm.reporting.chart import Chart, Line
from lightning_llm.reporting.run import Points, Run

# One per run; with more runs they repeat.
COLOURS = ("#4269d0", "#d97706", "#d6335c", "#0f9f8f", "#3ca951", "#a463f2", "#9c6b4e", "#6b7280")

_CHARTS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Loss", lambda c: "loss" in c),
    ("Perplexity", lambda c: "perplexity" in c),
    ("Bits per byte", lambda c: "bits_per_byte" in c),
    ("BLEU", lambda c: "bleu" in c),
    ("chrF", lambda c: "chrf" in c),
    ("Exact match", lambda c: "exact_match" in c),
    ("F1", lambda c: c.partition("/")[0].endswith("_f1")),
    ("Valid syntax (%)", lambda c: "syntax_validity" in c),
    ("Learning rate", lambda c: c == "lr" or c.startswith(("lr-", "lr/", "learning_rate"))),
    ("Gradient norm", lambda c: c.startswith("grad_norm")),
    ("Tokens per second", lambda c: c.startswith("tokens_per_second")),
    ("Model FLOPs utilisation", lambda c: c.startswith("mfu")),
    ("Memory (GiB)", lambda c: c.endswith("_gib")),
)


def charts_over_work(runs: Sequence[Run]) -> list[Chart]:
    """Charts over tokens, where every run with a log counted them, else over steps.

    A count that stands still, as of a run whose batches held nothing to count, is none.
    """
    logged = [run for run in runs if run.series]
    if all(run.counted_tokens for run in logged):
        return _charts(runs, "tokens", Run.over_tokens)
    return _charts(runs, "step", Run.over_steps)


def charts_over_time(runs: Sequence[Run]) -> list[Chart]:
    """The same charts over minutes of training; none unless every run with a log has a clock."""
    if not all(run.series.get("step_seconds") for run in runs if run.series):
        return []
    return _charts(runs, "minutes", Run.over_minutes)


def charted_columns(run: Run) -> list[str]:
    """The columns that some chart shows, in the order of the charts."""
    return [
        column
        for _, belongs in _CHARTS
        for column in sorted(filter(belongs, run.series))
        if run.series[column]
    ]


def _charts(runs: Sequence[Run], axis: str, over: Callable[[Run, str], Points]) -> list[Chart]:
    charts = []
    for title, belongs in _CHARTS:
        lines = [
            Line(run.name, column, index % len(COLOURS), _is_evaluation(column), points)
            for index, run in enumerate(runs)
            for column in sorted(filter(belongs, run.series))
            if (points := over(run, column))
        ]
        if lines:
            charts.append(Chart(title, axis, lines))
    return charts


def _is_evaluation(column: str) -> bool:
    return column.startswith(("val", "test"))
