"""What a training run does with its time, and what is wrong with it: a few steps, then a report."""

from __future__ import annotations

from lightning_llm.diagnostics.advice import advise
from lightning_llm.diagnostics.examination import examine
from lightning_llm.diagnostics.report import Report, as_text
from lightning_llm.diagnostics.setup import Setup

__all__ = ["examine", "advise", "Report", "Setup", "as_text"]
