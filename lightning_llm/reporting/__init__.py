"""Pictures of one or several runs, from the files they left; standard library only, PNGs apart."""

from __future__ import annotations

from lightning_llm.reporting.ending import Ending, read_ending, write_ending
from lightning_llm.reporting.page import render_report
from lightning_llm.reporting.png import write_pngs
from lightning_llm.reporting.run import Row, Run, read_run, read_runs

__all__ = [
    "Ending",
    "Row",
    "Run",
    "read_ending",
    "read_run",
    "read_runs",
    "render_report",
    "write_ending",
    "write_pngs",
]
