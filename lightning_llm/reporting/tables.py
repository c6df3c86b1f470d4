"""Tables of a report as HTML: the last numbers, and samples of text as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lightning_llm.reporting.charts import charted_columns
from lightning_llm.reporting.run import Row, Run

_MOST_ROWS = 200  # of a table of samples


def numbers_table(runs: Sequence[Run]) -> str:
    """The last value of every column that is drawn, one column of the table per run."""
    columns = list(dict.fromkeys(column for run in runs for column in charted_columns(run)))
    if not columns:
        return ""
    names = ["tokens_seen", *columns] if any(r.series.get("tokens_seen") for r in runs) else columns
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    rows = [
        f"<tr><th>{escape(name)}</th>{''.join(_last(run, name) for run in runs)}</tr>"
        for name in names
    ]
    return (
        f"<h2>Last values</h2>\n<table class='numbers'><tr><th></th>{head}</tr>\n"
        + "\n".join(rows)
        + "\n</table>"
    )


def _last(run: Run, column: str) -> str:
    points = run.series.get(column)
    if not points:
        return "<td></td>"
    step, value = points[-1]
    shown = f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"
    return f'<td title="step {step:.0f}"><data value="{value!r}">{shown}</data></td>'


def samples_table(rows: Sequence[Row]) -> str:
    """Rows of the same first column, such as a prompt, below each other in the order of steps.

    What does not change over a group stands there once.
    """
    kept, left_out = _thinned(rows)
    names = list(dict.fromkeys(name for row in kept for name in row.texts))
    used = [name for name in names if any(row.texts.get(name) for row in kept)]
    first, *others = used or names
    columns = [first, "step", *others]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    groups: dict[str, list[dict[str, str]]] = {}
    for row in kept:
        cells = {"step": f"{row.step:g}", **row.texts}
        groups.setdefault(row.texts.get(first, ""), []).append(cells)
    body = "\n".join(_group(group, columns) for group in groups.values())
    note = f"<p>{left_out} steps between the first and the last are left out.</p>\n"
    return (note if left_out else "") + f"<table class='samples'><tr>{head}</tr>\n{body}\n</table>"


def _group(cells: list[dict[str, str]], columns: list[str]) -> str:
    lines = []
    constant = {name for name in columns if len({row.get(name, "") for row in cells}) == 1}
    for index, row in enumerate(cells):
        line = ""
        for name in columns:
            if name in constant and index:
                continue
            span = f' rowspan="{len(cells)}"' if name in constant and len(cells) > 1 else ""
            line += f"<td{span}>{escape(row.get(name, ''))}</td>"
        lines.append(f"<tr>{line}</tr>")
    return "\n".join(lines)


def _thinned(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Rows of evenly spread steps, the first and the last among them, and the steps left out."""
    steps = sorted({row.step for row in rows})
    most = max(2, _MOST_ROWS * len(steps) // len(rows))
    if len(steps) > most:
        kept = {steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)}
    else:
        kept = set(steps)
    chosen = sorted((row for row in rows if row.step in kept), key=lambda row: row.step)
    return chosen, len(steps) - len(kept)
