"""The page: charts, samples and the files of the runs, in one HTML text without scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from lightning_llm.reporting.chart import Line, line_chart
from lightning_llm.reporting.run import Run

_COLOURS = ("#4269d0", "#d97706", "#d6335c", "#0f9f8f", "#3ca951", "#a463f2", "#9c6b4e", "#6b7280")
_MOST_SAMPLES = 200

_CHARTS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Loss", lambda c: "loss" in c),
    ("Perplexity", lambda c: "perplexity" in c),
    ("BLEU", lambda c: "bleu" in c),
    ("chrF", lambda c: "chrf" in c),
    ("Learning rate", lambda c: c == "lr" or c.startswith(("lr-", "lr/", "learning_rate"))),
    ("Gradient norm", lambda c: c.startswith("grad_norm")),
    ("Tokens per second", lambda c: c.startswith("tokens_per_second")),
    ("Memory (GiB)", lambda c: c.endswith("_gib")),
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --back: #fff; --soft: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --back: #0d1117; --soft: #30363d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
figure { margin: 0; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--ink); } .x { text-anchor: middle; } .y { text-anchor: end; }
.grid { stroke: var(--soft); } .line { fill: none; stroke-width: 1.6; }
.dashed { stroke-dasharray: 6 3; }
.runs { list-style: none; padding: 0; }
.key { display: inline-block; width: 1em; height: 1em; border-radius: 3px; vertical-align: -2px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--soft); padding: .6rem;
  border-radius: 6px; }
"""


def render_report(runs: Sequence[Run]) -> str:
    """A self-contained HTML page of ``runs``, one colour each; texts of the runs are escaped."""
    colours = "".join(
        f".c{i} {{ stroke: {colour}; }} .key.c{i} {{ background: {colour}; }}\n"
        for i, colour in enumerate(_COLOURS)
    )
    legend = "".join(
        f'<li><span class="key c{i % len(_COLOURS)}"></span> {escape(run.name)}</li>'
        for i, run in enumerate(runs)
    )
    body = "\n".join(_figures(runs)) or "<p>No metrics were logged.</p>"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Training report</title>'
        f"<style>{_STYLE}{colours}</style></head><body>\n<h1>Training report</h1>\n"
        f"<ul class='runs'>{legend}</ul>\n<div class='charts'>\n{body}\n</div>\n"
        + "\n".join(_texts(run) for run in runs)
        + "\n</body></html>\n"
    )


def _figures(runs: Sequence[Run]) -> list[str]:
    figures = []
    for title, belongs in _CHARTS:
        counted = all(run.series.get("tokens_seen") for run in runs)
        axis = "tokens" if counted else "step"
        figures.append(_figure(title, axis, runs, belongs))
        if title.startswith("Memory"):
            figures.append(_figure(title, "minutes", runs, belongs))
    return [figure for figure in figures if figure]


def _figure(title: str, axis: str, runs: Sequence[Run], belongs: Callable[[str], bool]) -> str:
    lines = []
    for index, run in enumerate(runs):
        for column in sorted(filter(belongs, run.series)):
            if axis == "step":
                points = run.series[column]
            elif axis == "tokens":
                points = run.over_tokens(column)
            else:
                points = run.over_minutes(column)
            label = f"{run.name}: {column}"
            lines.append(Line(label, index % len(_COLOURS), not _is_training(column), points))
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    names = sorted({line.label.rpartition(": ")[2] for line in lines})
    note = escape(", ".join(names)) + (
        "; dashed: evaluation" if any(x.dashed for x in lines) else ""
    )
    return (
        f"<figure><h2>{escape(title)} over {axis}</h2>{line_chart(title, axis, lines)}"
        f"<figcaption>{note}</figcaption></figure>"
    )


def _is_training(column: str) -> bool:
    return not column.startswith(("val", "test"))


def _texts(run: Run) -> str:
    parts = [f"<h2>{escape(run.name)}</h2>"]
    if run.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
        parts.append(f"<details open><summary>Not read</summary><ul>{items}</ul></details>")
    if run.samples:
        blocks = "".join(
            f"<p>step {escape(str(row['step']))}</p>"
            f"<pre><b>{escape(str(row['prompt']))}</b>{escape(str(row['text']))}</pre>"
            for row in run.samples[-_MOST_SAMPLES:]
        )
        parts.append(f"<details open><summary>Samples</summary>{blocks}</details>")
    for title, text in run.texts.items():
        parts.append(f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>")
    return "\n".join(parts)
