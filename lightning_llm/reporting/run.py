"""The files of a run, read leniently: what is missing is left out, what is broken is named."""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        name: Shown in legends.
        series: Column of ``metrics.csv`` -> (optimizer step, value), finite values only.
        samples: Rows of ``samples.jsonl``: step, prompt, text.
        texts: Title -> text of the files that describe the run.
        problems: A sentence for each row or file that could not be read.
    """

    name: str
    series: dict[str, Points] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def over_tokens(self, column: str) -> Points:
        """A column over target tokens; no points where tokens were not counted."""
        return _moved(self.series.get(column, []), self.series.get("tokens_seen", []))

    def over_minutes(self, column: str) -> Points:
        """A column over minutes of training, summed from ``step_seconds``."""
        clock: Points = []
        seconds, before = 0.0, -1.0
        for step, per_step in self.series.get("step_seconds", []):
            seconds += max(step - before, 0) * per_step
            before = step
            clock.append((step, seconds / 60))
        return _moved(self.series.get(column, []), clock)


def read_run(directory: Path) -> Run:
    """Read a directory of Lightning's ``CSVLogger``.

    Raises:
        ValueError: It has no ``metrics.csv``.
    """
    metrics = directory / "metrics.csv"
    if not metrics.is_file():
        found = sorted(directory.rglob("metrics.csv"))[:3]
        hint = f"; did you mean {str(found[0].parent)!r}?" if found else ""
        raise ValueError(
            f"RUN_DIR {str(directory)!r} has no metrics.csv, which CSVLogger writes{hint}"
        )
    run = Run(name="/".join(directory.resolve().parts[-2:]))
    _read_metrics(metrics, run)
    _read_samples(directory / "samples.jsonl", run)
    titles = {
        "config.yaml": "Recipe",
        "hparams.yaml": "Hyperparameters",
        "environment.json": "Hardware and versions",
    }
    for file, title in titles.items():
        path = directory / file
        if path.is_file():
            run.texts[title] = path.read_text(encoding="utf-8", errors="replace").strip()
    return run


def _read_metrics(path: Path, run: Run) -> None:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(line.replace("\0", "") for line in file)
        header = next(rows, [])
        if "step" not in header:
            run.problems.append(f"{path.name}: no column 'step' in the first line")
            return
        for row in rows:
            try:
                values = dict(zip(header, row, strict=True))
                numbers = {name: float(text) for name, text in values.items() if text}
                step = numbers.pop("step")
            except (ValueError, KeyError):
                run.problems.append(f"{path.name}, line {rows.line_num}: left out, not a whole row")
                continue
            for name, number in numbers.items():
                if math.isfinite(number) and math.isfinite(step):
                    run.series.setdefault(name, []).append((step, number))
    for points in run.series.values():
        points.sort(key=lambda point: point[0])


def _read_samples(path: Path, run: Run) -> None:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            run.samples.append({key: row[key] for key in ("step", "prompt", "text")})
        except (ValueError, KeyError, TypeError):
            run.problems.append(f"{path.name}, line {number}: left out, not a sample")


def _moved(points: Points, clock: Points) -> Points:
    """``points`` over another clock, known at some steps and a straight line between them."""
    if not clock:
        return []
    steps = [step for step, _ in clock]
    moved = []
    for step, value in points:
        right = min(bisect_left(steps, step), len(clock) - 1)
        left = max(right - 1, 0)
        (s0, c0), (s1, c1) = clock[left], clock[right]
        share = min(max((step - s0) / (s1 - s0), 0.0), 1.0) if s1 > s0 else 1.0
        moved.append((c0 + share * (c1 - c0), value))
    return moved
