"""Result files to tables: on the console, and as the documentation's page with bar charts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.charts import bar_chart
from benchmarks.pages import fill, summary_table
from benchmarks.results import read_results

DOCS = Path(__file__).parents[1] / "docs"
Result = dict[str, Any]
Row = dict[str, Any]
QUIET_CORES = 0.15
_NOT_TIMED = {"steps_to_loss", "architecture"}

_INTRO = """# Benchmarks

Written by `python -m benchmarks render` from the files in `benchmarks/results`; every table names
the command that repeats it. How it is measured, and what is fair in it and what not, is in
`benchmarks/README.md`.

All contenders of a table run on the same machine in one session, in alternation, in processes that
stay alive; warm-up is left out. A figure is the median over the rounds. A ratio is taken within
each round; its median and its range over the rounds are given. Under 5 % is a tie. Figures of
different tables, or of different machines, do not compare.
"""
# On the page about how to train faster, docs/speed.md.
_ON_SPEED_PAGE = {"ladder", "steps_to_loss", "architecture"}
_HEADINGS = {
    "ladder": "",
    "steps_to_loss": "",
    "architecture": "",
    "run": "Training",
    "loss": "Loss",
    "tokenize": "Tokenizing",
    "loader": "Loading",
    "generate": "Generation",
    "startup": "Start",
    "checkpoint": "Checkpoints",
    "overhead": "Overhead of a step",
}


def text_table(result: Result) -> str:
    """The table of a result with aligned columns."""
    header, *lines = table(result)
    widths = [max(len(line[place]) for line in (header, *lines)) for place in range(len(header))]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
        for line in (header, ["-" * width for width in widths], *lines)
    ]
    return "\n".join([result["title"], *body])


def table(result: Result) -> list[list[str]]:
    """Header and lines of a result's table."""
    columns = [_COLUMNS[name] for name in result["columns"]]
    header = ["", *(head(result) for head, _ in columns)]
    lines = []
    for row in result["rows"]:
        if "median_seconds" in row:
            cells = [cell(row) for _, cell in columns]
        else:
            cells = [f"{row['status']}: {row.get('reason', '')}", *[""] * (len(columns) - 1)]
        lines.append([row["label"], *cells])
    return [header, *lines]


def write_page(results: Path, docs: Path) -> Path:
    """Write ``benchmarks.md`` and its charts, and fill the tables of the pages that show some.

    Of runs with the same settings on the same machine the last one counts; quick runs never do.

    Raises:
        ValueError: There is no result to show.
    """
    shown = _latest(results)
    charts = docs / "assets" / "benchmarks"
    charts.mkdir(parents=True, exist_ok=True)
    parts, elsewhere = [_INTRO], {}
    for kind, heading in _HEADINGS.items():
        sections = []
        for result in shown:
            if result["kind"] == kind:
                chart = f"{Path(result['file']).stem}.svg"
                (charts / chart).write_text(bar_chart(result), encoding="utf-8")
                sections.append(_section(result, f"assets/benchmarks/{chart}"))
        if kind in _ON_SPEED_PAGE:
            elsewhere[kind] = "\n".join(sections)
        elif sections:
            parts += [f"## {heading}\n", *sections]
    page = docs / "benchmarks.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    fill(docs / "speed.md", elsewhere)
    fill(
        docs / "zh" / "speed.md",
        {name: text.replace("](assets/", "](../assets/") for name, text in elsewhere.items()},
    )
    for readme in ("README.md", "README.zh.md"):
        fill(docs.parent / readme, {"summary": summary_table(shown)})
    return page


def _latest(results: Path) -> list[Result]:
    """The last result of each kind, machine and settings, oldest first."""
    shown: dict[tuple[str, ...], Result] = {}
    for result in read_results(results):
        if not result["settings"]["quick"]:
            machine = result["machine"]
            hardware = f"{machine.get('gpu', '')}{machine['cpu']}"
            names = [str(part) for part in result["settings"]["name_parts"]]
            # Contenders that were named one by one have no name together.
            chosen = [row["label"] for row in result["rows"]] if "chosen" in names else []
            shown[(result["kind"], hardware, *names, *chosen)] = result
    if not shown:
        raise ValueError(f"{results} holds no result that is worth a page (quick runs are not)")
    return list(shown.values())


def _section(result: Result, chart: str) -> str:
    header, *lines = table(result)
    rows = [header, [":--", *["--:"] * (len(header) - 1)], *lines]
    markdown = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    notes = [f"{row['label']}: {row['note']}." for row in result["rows"] if "note" in row]
    notes += [
        f"{name}: {about}." for name, about in result["settings"].get("techniques", {}).items()
    ]
    busy = result["machine"].get("busy_cores_before") or 0.0
    if result["kind"] in _NOT_TIMED:
        notes.append(
            "Steps and losses are the result; the times were not taken on an idle machine."
        )
    elif busy > QUIET_CORES:
        notes.append(f"The machine was not idle ({busy} cores busy before): do not quote.")
    title = f"{result['title']}{_how(result)}"
    parts = [f"### {title}", "", *markdown, ""]
    parts += [f"- {note}" for note in notes] + [""] * bool(notes)
    parts += [f"![{title}]({chart})", "", _origin(result), ""]
    return "\n".join(parts)


def _how(result: Result) -> str:
    """What tells two races on the same work apart, as the end of a headline."""
    if result["kind"] != "run":
        return ""
    labels = [row["label"] for row in result["rows"]]
    if "ours+compile+fused" in labels:
        return "; as shipped"
    compiled = ["compile" in label for label in labels]
    return "; everyone compiled" if all(compiled) else "" if any(compiled) else "; eager"


def _origin(result: Result) -> str:
    machine, settings, pace = result["machine"], result["settings"], result["settings"]["pace"]
    hardware = f"{machine['cpu']}, {settings['threads']} threads"
    if "gpu" in machine:
        hardware = f"{machine['gpu']}, power limit {machine['power_limit_w']} W; {hardware}"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['date'][:10]}, {hardware}, allocator {settings['allocator']}, "
        f"{pace['rounds']} rounds of {pace['steps']} steps, commit {machine.get('commit')}; "
        f"{versions}.\n\n```bash\n{result['command'].replace(' --results PATH', '')}\n```"
    )


def _significant(value: float) -> str:
    """Three digits, more where there are more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(row: Row) -> str:
    if "ratio" not in row:
        return ""
    if row["label"] == row["baseline"]:
        return "1"
    low, high = row["ratio_range"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}) of {row['baseline']}"


def _gain(row: Row) -> str:
    """The ratio the other way round: above 1 the row is faster than its baseline."""
    if "ratio" not in row:
        return ""
    low, high = row["ratio_range"]
    return f"{1 / row['ratio']:.2f} ({1 / high:.2f} to {1 / low:.2f})"


def _steps(row: Row) -> str:
    steps = row.get("steps_to_loss", "")
    return "not reached" if steps is None else str(steps)


def _mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f}"


_Column = tuple[Callable[[Result], str], Callable[[Row], str]]
_COLUMNS: dict[str, _Column] = {
    "rate": (lambda result: result["unit"], lambda row: _significant(row["rate"])),
    "ratio": (lambda _: "time as a multiple", _ratio),
    "gain": (lambda _: "speed as a multiple of base", _gain),
    "memory": (lambda _: "peak memory, MiB", lambda row: _mebibytes(row["peak_memory_bytes"])),
    "extra": (
        lambda _: "extra peak memory, MiB",
        lambda row: _mebibytes(row.get("extra_memory_bytes")),
    ),
    "seconds": (lambda _: "seconds", lambda row: _significant(row["median_seconds"])),
    "milliseconds": (lambda _: "ms", lambda row: f"{row['median_seconds'] * 1e3:.3f}"),
    "cpu": (lambda _: "ms of processor", lambda row: f"{row['median_cpu_seconds'] * 1e3:.3f}"),
    "steps": (lambda _: "steps to the loss", _steps),
    "last_loss": (lambda _: "last loss", lambda row: f"{row['losses'][-1]:.3f}"),
}
