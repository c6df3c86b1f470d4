"""Callbacks that are guests on any LightningModule; one per file.

Modules with a leading underscore are what they share with each other, and with the steps, the
diagnosis and the command line of this package: nothing for others to import.
"""

from __future__ import annotations

from lightning_llm.callbacks.answer_monitor import AnswerMonitor
from lightning_llm.callbacks.bleu_monitor import BLEUMonitor
from lightning_llm.callbacks.finite_guard import FiniteGuard
from lightning_llm.callbacks.garbage_collection import GarbageCollection
from lightning_llm.callbacks.hf_export import HFExport
from lightning_llm.callbacks.optimizer_settings import OptimizerSettings
from lightning_llm.callbacks.perplexity_monitor import PerplexityMonitor
from lightning_llm.callbacks.preemption import Preemption
from lightning_llm.callbacks.random_state import RandomState
from lightning_llm.callbacks.run_report import RunReport
from lightning_llm.callbacks.sample_text import SampleText
from lightning_llm.callbacks.save_at_end import SaveAtEnd
from lightning_llm.callbacks.speed_monitor import SpeedMonitor
from lightning_llm.callbacks.stall_guard import StallGuard
from lightning_llm.callbacks.startup_banner import StartupBanner
from lightning_llm.callbacks.syntax_monitor import SyntaxMonitor
from lightning_llm.callbacks.token_progress_bar import TokenProgressBar

__all__ = [
    "PerplexityMonitor",
    "BLEUMonitor",
    "AnswerMonitor",
    "SyntaxMonitor",
    "SaveAtEnd",
    "SpeedMonitor",
    "SampleText",
    "HFExport",
    "FiniteGuard",
    "Preemption",
    "StallGuard",
    "RandomState",
    "OptimizerSettings",
    "GarbageCollection",
    "TokenProgressBar",
    "StartupBanner",
    "RunReport",
]
