"""Tables inside pages that are written by hand, between markers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]
_TIE = 0.05
# What a row is compared with says how it was run.
_HOW = {"ours+compile": "tuned alike", "ours+compile+fused": "as shipped"}
_NAMES = {
    "hf_trainer": "Hugging Face Trainer",
    "lightning_hf": "plain Lightning, Hugging Face model",
    "hf": "Hugging Face model, bare loop",
    "litgpt": "LitGPT model, bare loop",
    "nanogpt": "nanoGPT-style model, bare loop",
}


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between ``<!-- benchmark: NAME -->`` and ``<!-- end -->``.

    A table that has no text leaves its place as it is; a page that is not there is no page.
    """
    if not page.exists():
        return
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        if table:
            start, end = f"<!-- benchmark: {name} -->\n", "<!-- end -->"
            before, marker, rest = text.partition(start)
            if marker:
                text = f"{before}{start}\n{table.strip()}\n\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def summary_table(results: Iterable[Result]) -> str:
    """Speed of ours as a multiple of each peer's, per workload: as shipped, and tuned alike."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    workloads: list[str] = []
    for result in results:
        if result["kind"] != "run" or result["settings"].get("precision") != "bf16-mixed":
            continue
        workload = result["settings"]["workload"]
        if _HOW.keys() & {row.get("baseline") for row in result["rows"]}:
            workloads += [workload] * (workload not in workloads)
        for row in result["rows"]:
            name = row["label"].partition("+")[0]
            how = _HOW.get(row.get("baseline", ""))
            if name in _NAMES and how:
                cells.setdefault((name, how), {})[workload] = _multiple(row["ratio"])
    if not cells:
        return ""
    workloads.sort(key="SML".find)
    lines = [
        "| speed of ours as a multiple of | " + " | ".join(workloads) + " |",
        "|:--" + "|--:" * len(workloads) + "|",
    ]
    for (name, how), found in sorted(cells.items(), key=lambda cell: cell[0][1]):
        values = [found.get(workload, "") for workload in workloads]
        lines.append(f"| {_NAMES[name]}, {how} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _multiple(ratio: float) -> str:
    return f"{ratio:.2f}" + (" (a tie)" if abs(ratio - 1) < _TIE else "")
