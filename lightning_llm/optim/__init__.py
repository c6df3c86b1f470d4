"""Optimizers, the parameter groups they take, and learning-rate schedules; torch only."""

from lightning_llm.optim.adamw import AdamW
from lightning_llm.optim.muon import Muon
from lightning_llm.optim.parameter_groups import parameter_groups
from lightning_llm.optim.schedules import WarmupCosine, WarmupStableDecay

__all__ = ["AdamW", "Muon", "WarmupCosine", "WarmupStableDecay", "parameter_groups"]
