"""Lightning strategies that compile, checkpoint and shard a model's repeated blocks.

Importing this package makes ``Trainer(strategy="fsdp2")`` known to Lightning.
"""

from __future__ import annotations

from lightning.pytorch.strategies import StrategyRegistry

from lightning_llm.strategies.ddp import DDPStrategy
from lightning_llm.strategies.fsdp2 import FSDP2Strategy
from lightning_llm.strategies.single import SingleDeviceStrategy

if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description=FSDP2Strategy.__name__)

__all__ = ["SingleDeviceStrategy", "DDPStrategy", "FSDP2Strategy"]
