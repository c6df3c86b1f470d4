"""One HTML page of one or several runs, from the files they left; standard library only."""

from __future__ import annotations

from lightning_llm.reporting.page import render_report
from lightning_llm.reporting.run import Run, read_run

__all__ = ["Run", "read_run", "render_report"]
