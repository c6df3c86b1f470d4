"""Metrics from sums: independent of batch size, padding and number of ranks."""

from __future__ import annotations

from lightning_llm.metrics.bits_per_byte import BitsPerByte
from lightning_llm.metrics.bleu import CorpusBLEU
from lightning_llm.metrics.chrf import CorpusCHRF
from lightning_llm.metrics.perplexity import Perplexity
from lightning_llm.metrics.qa import ExactMatch, TokenF1
from lightning_llm.metrics.syntax import SyntaxValidity, is_valid_python

__all__ = [
    "Perplexity",
    "BitsPerByte",
    "CorpusBLEU",
    "CorpusCHRF",
    "ExactMatch",
    "TokenF1",
    "SyntaxValidity",
    "is_valid_python",
]
