"""Lightning strategies that compile and checkpoint a model's repeated blocks."""

from __future__ import annotations

from lightning_llm.strategies.ddp import DDPStrategy
from lightning_llm.strategies.single import SingleDeviceStrategy

__all__ = ["SingleDeviceStrategy", "DDPStrategy"]
