"""Checkpoint files: written whole, verified when loaded."""

from __future__ import annotations

from lightning_llm.plugins.io.atomic import AtomicCheckpointIO
from lightning_llm.plugins.io.save_watcher import SaveWatcher
from lightning_llm.plugins.io.sealed_file import (
    DamagedCheckpointError,
    read_checkpoint,
    verify_checkpoint,
)

__all__ = [
    "AtomicCheckpointIO",
    "DamagedCheckpointError",
    "SaveWatcher",
    "read_checkpoint",
    "verify_checkpoint",
]
