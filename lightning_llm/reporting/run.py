"""The files of a run, read leniently: what is missing is left out, what is broken is named."""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lightning_llm.errors import InvalidValueError
from lightning_llm.reporting.ending import ENDING_FILE, Ending, read_ending

Points = list[tuple[float, float]]
_LOG_FILES = ("metrics.csv", ENDING_FILE)  # a run that failed at once has only the second
_NAME_PARTS = 3  # such as quickstart/lightning_logs/version_0


class Row(NamedTuple):
    """One sample: the optimizer step it was taken at, and name -> text."""

    step: float
    texts: dict[str, str]


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        name: Shown in legends.
        series: Column of ``metrics.csv`` -> (optimizer step, value), finite values only.
        samples: Title -> rows of ``samples.jsonl`` and of the callbacks' ``…_samples.jsonl``.
        texts: Title -> text of the files that describe the run.
        problems: A sentence for each row or file that could not be read.
        ending: How the run ended; None where nothing was recorded.
        is_open: `RunReport` recorded a start and no end: the run goes on, or was killed.
    """

    name: str
    series: dict[str, Points] = field(default_factory=dict)
    samples: dict[str, list[Row]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ending: Ending | None = None
    is_open: bool = False

    @property
    def counted_tokens(self) -> bool:
        """Whether ``tokens_seen`` grew with the steps; a single row counts if it is above 0."""
        points = self.series.get("tokens_seen", [])
        counts = {count for _, count in points}
        return len(counts) > 1 or (len({step for step, _ in points}) == 1 and max(counts) > 0)

    def over_steps(self, column: str) -> Points:
        """A column over optimizer steps."""
        return self.series.get(column, [])

    def over_tokens(self, column: str) -> Points:
        """A column over target tokens; no points where tokens were not counted."""
        clock = self.series.get("tokens_seen", []) if self.counted_tokens else []
        return _moved(self.series.get(column, []), clock)

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
    """Read a directory of Lightning's ``CSVLogger``, or the newest run below one.

    A run that ended before its first row has no ``metrics.csv``; its ``ending.json`` will do.

    Raises:
        ValueError: There is no such directory.
    """
    directory = _log_directory(directory)
    run = Run(name=_name(directory, _NAME_PARTS))
    if (directory / "metrics.csv").is_file():
        _read_metrics(directory / "metrics.csv", run)
    try:
        run.ending = read_ending(directory)
    except ValueError as error:
        run.problems.append(str(error))
    for path in sorted(directory.glob("*samples.jsonl"), key=lambda path: len(path.name)):
        _read_samples(path, run)
    titles = {
        "config.yaml": "Recipe",
        "hparams.yaml": "Hyperparameters",
        "environment.json": "Hardware and versions",
    }
    for file, title in titles.items():
        path = directory / file
        if path.is_file():
            run.texts[title] = path.read_text(encoding="utf-8", errors="replace").strip()
    begun, ended = (directory / "environment.json").is_file(), (directory / ENDING_FILE).is_file()
    run.is_open = begun and not ended
    return run


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Read several such directories, with names that tell them apart."""
    runs = [read_run(directory) for directory in directories]
    found = [_log_directory(directory) for directory in directories]
    count = _NAME_PARTS
    longest = max((len(directory.resolve().parts) for directory in found), default=0)
    while count < longest and len({_name(directory, count) for directory in found}) < len(runs):
        count += 1
    for run, directory in zip(runs, found):
        run.name = _name(directory, count)
    return runs


def _name(directory: Path, parts: int) -> str:
    name = "/".join(directory.resolve().parts[-parts:])
    return name.encode("utf-8", "backslashreplace").decode()  # some names of files are no text


def _log_directory(directory: Path) -> Path:
    if any((directory / name).is_file() for name in _LOG_FILES):
        return directory
    files = [path for name in _LOG_FILES for path in directory.rglob(name)]
    by_age = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    found = list(dict.fromkeys(path.parent for path in by_age))
    if not found:
        raise InvalidValueError(
            f"RUN_DIR {str(directory)!r} has no metrics.csv, which CSVLogger writes"
        )
    return next((folder for folder in found if _has_trained(folder)), found[0])


def _has_trained(log: Path) -> bool:
    """Whether it is more than the log of a `validate` or `test`, which has a single step."""
    if (log / ENDING_FILE).is_file():
        return True
    first = None
    with (log / "metrics.csv").open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(line.replace("\0", "") for line in file):
            if first is not None and row.get("step") != first:
                return True
            first = row.get("step")
    return False


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
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            step = float(values.pop("step"))
            values.pop("epoch", None)
            texts = {str(name): str(text) for name, text in values.items()}
            if not (math.isfinite(step) and texts):
                raise ValueError("no step or no text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            run.problems.append(f"{path.name}, line {number}: left out, not a sample")
            continue
        rows.append(Row(step, texts))
    if rows:
        words = path.stem.replace("bleu", "BLEU").replace("_", " ")
        run.samples[words[:1].upper() + words[1:]] = rows


def _moved(points: Points, clock: Points) -> Points:
    """``points`` over another clock, known at some steps; straight lines between and beyond."""
    if not clock:
        return []
    steps = [step for step, _ in clock]
    moved = []
    for step, value in points:
        right = min(max(bisect_left(steps, step), 1), len(clock) - 1)
        left = max(right - 1, 0)
        (s0, c0), (s1, c1) = clock[left], clock[right]
        share = (step - s0) / (s1 - s0) if s1 > s0 else 1.0
        moved.append((max(c0 + share * (c1 - c0), 0.0), value))
    return moved
