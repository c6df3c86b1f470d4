"""A result file: what was measured, on what, with what; plain JSON, dated, never overwritten."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.race import Row

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"


def summarize(rows: Sequence[Row], baselines: dict[str, str]) -> None:
    """Add medians, rates and ratios to rows of a race.

    ``rate`` is units per second at the median step. ``ratio`` compares within each round: time of
    the row over that of its baseline in the same round, for the same amount of work, so above 1
    the baseline is faster; the median over the rounds, with lowest and highest as ``ratio_range``.

    Args:
        rows: As `benchmarks.race.race` returns them.
        baselines: Label of a row -> label of the row it is compared with.
    """
    by_label = {row["label"]: row for row in rows}
    for row in rows:
        row.pop("log", None)
        row.pop("event", None)
        if row["status"] != "ok" or not row["seconds_per_step"]:
            continue
        row["median_seconds"] = median(row["seconds_per_step"])
        row["rate"] = row["units_per_step"] / row["median_seconds"]
        row["median_cpu_seconds"] = median(row["cpu_seconds_per_step"])
        row["peak_memory_bytes"] = max(row["peak_memory_bytes"])
        baseline = by_label.get(baselines.get(row["label"], ""))
        if baseline is None or baseline["status"] != "ok":
            continue
        # Per unit of work: the steps of two rows may hold different amounts of it.
        scale = baseline["units_per_step"] / row["units_per_step"]
        pairs = zip(row["seconds_per_step"], baseline["seconds_per_step"])
        ratios = [theirs / base * scale for theirs, base in pairs]
        row["baseline"] = baseline["label"]
        row["ratio"] = median(ratios)
        row["ratio_range"] = [min(ratios), max(ratios)]


def write_result(result: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write a result under a name made of its date and what was measured; returns the path."""
    parts = [result["kind"], *result["settings"].get("name_parts", [])]
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", str(part)).strip("-") for part in parts]
    stamp = result["date"][:19].replace(":", "")
    path = folder / f"{stamp}_{'_'.join(words)}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        json.dump(_rounded(result), file, indent=1)
        file.write("\n")
    return path


def read_results(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return all results, oldest first.

    Raises:
        ValueError: A file has another schema than this version writes.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("schema") != SCHEMA:
            raise ValueError(f"{path.name}: schema={result.get('schema')!r}, expected {SCHEMA}")
        result["file"] = path.name
        results.append(result)
    return results


def now() -> str:
    """The local time with its offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _rounded(value: Any) -> Any:
    """Six significant digits: timings have no more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
