"""The page: charts, samples and the files of the runs, in one HTML text without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import unified_diff
from html import escape

from lightning_llm.reporting.chart import Chart
from lightning_llm.reporting.charts import COLOURS, charts_over_time, charts_over_work
from lightning_llm.reporting.run import Run
from lightning_llm.reporting.svg import svg
from lightning_llm.reporting.tables import numbers_table, samples_table

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --back: #fff; --soft: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --back: #0d1117; --soft: #30363d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.over-time, #over-time:checked ~ .over-work { display: none; }
#over-time:checked ~ .over-time { display: grid; }
figure { margin: 0; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--ink); } .x { text-anchor: middle; } .y { text-anchor: end; }
.grid { stroke: var(--soft); } .line { fill: none; stroke-width: 1.6; }
.dashed { stroke-dasharray: 6 3; }
.runs { list-style: none; padding: 0; }
.error { color: #d6335c; font-weight: 600; } .interrupted { color: #d97706; }
.key { display: inline-block; width: 1em; height: 1em; border-radius: 3px; vertical-align: -2px; }
pre, td { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { border: 1px solid var(--soft); padding: .6rem; border-radius: 6px; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { border: 1px solid var(--soft); padding: .2rem .6rem; text-align: left;
  vertical-align: top; }
.samples td { font: 13px/1.45 ui-monospace, monospace; }
.numbers td { text-align: right; font-variant-numeric: tabular-nums; }
"""


def render_report(runs: Sequence[Run]) -> str:
    """A self-contained HTML page of ``runs``, one colour each; texts of the runs are escaped."""
    colours = "".join(
        f".c{i} {{ stroke: {colour}; }} .key.c{i} {{ background: {colour}; }}\n"
        for i, colour in enumerate(COLOURS)
    )
    legend = "".join(
        f'<li><span class="key c{i % len(COLOURS)}"></span> {escape(run.name)}{_ending(run)}</li>'
        for i, run in enumerate(runs)
    )
    parts = [f"<h1>Training report</h1>\n<ul class='runs'>{legend}</ul>", _charts(runs)]
    parts += [numbers_table(runs), *(_texts(run, runs[0]) for run in runs)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Training report</title>'
        f"<style>{_STYLE}{colours}</style></head><body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _ending(run: Run) -> str:
    """What the reader of a run that failed looks for first."""
    if run.is_open:
        return ' · <span class="interrupted">no end recorded: it runs still, or was killed</span>'
    if run.ending is None:
        return ""
    return f' · <span class="{run.ending.state}">{escape(run.ending.sentence)}</span>'


def _charts(runs: Sequence[Run]) -> str:
    """Charts over tokens or steps; two buttons of the same name exchange them for time."""
    work, time = charts_over_work(runs), charts_over_time(runs)
    if not work:
        return "<p>No metrics were logged.</p>"
    parts = [f"<div class='charts over-work'>\n{_figures(work)}\n</div>"]
    if time:
        choices = [
            f"<input type='radio' name='axis' id='{name}'{state}>"
            f"<label for='{name}'>over {charts[0].axis}</label>"
            for name, charts, state in (("over-work", work, " checked"), ("over-time", time, ""))
        ]
        parts = [*choices, *parts, f"<div class='charts over-time'>\n{_figures(time)}\n</div>"]
    return "<div>\n" + "\n".join(parts) + "\n</div>"


def _figures(charts: list[Chart]) -> str:
    return "\n".join(
        f"<figure><h2>{escape(chart.heading)}</h2>{svg(chart)}"
        f"<figcaption>{escape(chart.note)}</figcaption></figure>"
        for chart in charts
    )


def _texts(run: Run, first: Run) -> str:
    parts = [f"<h2>{escape(run.name)}</h2>"]
    if run.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
        parts.append(_folded("Not read", f"<ul>{items}</ul>", is_open=True))
    if run.ending is not None and run.ending.message:
        said = f"<pre>{escape(run.ending.message)}</pre>"
        parts.append(_folded(f"How it ended: {run.ending.state}", said, is_open=True))
    for title, rows in run.samples.items():
        parts.append(_folded(title, samples_table(rows), is_open=True))
    for title, text in run.texts.items():
        parts.append(_folded(title, f"<pre>{escape(text)}</pre>"))
        if run is not first and title in first.texts:
            change = _difference(first.texts[title], text)
            parts.append(_folded(f"{title}: what differs from {first.name}", change))
    return "\n".join(parts)


def _folded(title: str, body: str, *, is_open: bool = False) -> str:
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(title)}</summary>{body}</details>"


def _difference(before: str, after: str) -> str:
    lines = list(unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2))[2:]
    return f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else "<p>Nothing.</p>"
