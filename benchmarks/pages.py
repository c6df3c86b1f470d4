"""Tables inside pages that are written by hand, between markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]
_TIE = 0.05
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
            place = re.compile(rf"(<!-- benchmark: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            text = place.sub(lambda found: f"{found[1]}\n{table.strip()}\n\n{found[2]}", text)
    page.write_text(text, encoding="utf-8")


def summary_table(results: Iterable[Result]) -> str:
    """Speed of ours as a multiple of each peer's, per workload: as shipped, and tuned alike."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    workloads: list[str] = []
    for result in results:
        if result["kind"] != "run" or result["settings"]["precision"] != "bf16-mixed":
            continue
        chosen = result["settings"]["name_parts"][-1]
        if chosen not in ("shipped", "compiled"):
            continue
        workload = result["settings"]["workload"]
        workloads += [workload] * (workload not in workloads)
        for row in result["rows"]:
            name = row["label"].partition("+")[0]
            if name in _NAMES and "ratio" in row:
                how = "as shipped" if chosen == "shipped" else "tuned alike"
                cells.setdefault((name, how), {})[workload] = _multiple(row["ratio"])
    if not cells:
        return ""
    lines = [
        "| speed of ours as a multiple of | " + " | ".join(sorted(workloads, key="SML".find)) + " |",
        "|:--" + "|--:" * len(workloads) + "|",
    ]
    for (name, how), found in sorted(cells.items(), key=lambda cell: cell[0][1]):
        values = [found.get(workload, "") for workload in sorted(workloads, key="SML".find)]
        lines.append(f"| {_NAMES[name]}, {how} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _multiple(ratio: float) -> str:
    return f"{ratio:.2f}" + (" (a tie)" if abs(ratio - 1) < _TIE else "")
