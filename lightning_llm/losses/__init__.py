"""Losses of a language model head, computed without whole logits in memory."""

from lightning_llm.losses.backends import BackendName
from lightning_llm.losses.choice import backend_choices
from lightning_llm.losses.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_with_nll,
)
from lightning_llm.losses.reference import linear_cross_entropy_reference

__all__ = [
    "BackendName",
    "backend_choices",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "linear_cross_entropy_with_nll",
]
