"""Lightning plugins: how weights are held and computed with, how checkpoints are written."""

from __future__ import annotations

from lightning_llm.plugins.io import (
    AtomicCheckpointIO,
    DamagedCheckpointError,
    SaveWatcher,
    read_checkpoint,
    verify_checkpoint,
)
from lightning_llm.plugins.precision.bf16 import BF16MixedPrecision
from lightning_llm.plugins.precision.float8 import Float8Precision
from lightning_llm.plugins.precision.master_weights import MasterWeightsPrecision

__all__ = [
    "BF16MixedPrecision",
    "MasterWeightsPrecision",
    "Float8Precision",
    "AtomicCheckpointIO",
    "SaveWatcher",
    "verify_checkpoint",
    "read_checkpoint",
    "DamagedCheckpointError",
]
