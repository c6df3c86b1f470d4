"""Callbacks that are guests on any LightningModule; one per file."""

from __future__ import annotations

from lightning_llm.callbacks.garbage_collection import GarbageCollection
from lightning_llm.callbacks.hf_export import HFExport
from lightning_llm.callbacks.perplexity_monitor import PerplexityMonitor
from lightning_llm.callbacks.sample_text import SampleText
from lightning_llm.callbacks.speed_monitor import SpeedMonitor

__all__ = ["PerplexityMonitor", "SpeedMonitor", "SampleText", "HFExport", "GarbageCollection"]
