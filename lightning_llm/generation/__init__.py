"""Text from a language model: greedy, sampled, or by beam search."""

from __future__ import annotations

from lightning_llm.generation.generate import generate
from lightning_llm.generation.sampling import (
    apply_repetition_penalty,
    apply_temperature,
    sample,
    top_k_filter,
    top_p_filter,
)

__all__ = [
    "generate",
    "apply_temperature",
    "top_k_filter",
    "top_p_filter",
    "apply_repetition_penalty",
    "sample",
]
