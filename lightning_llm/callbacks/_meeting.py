"""What ranks have to know of each other."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """``value`` of every rank, in the order of ranks; all ranks call it."""
    if trainer.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(gathered, value)
    return gathered


def data_replica(trainer: Trainer) -> tuple[int, int]:
    """Which share of the data this rank reads, and how many shares there are.

    Ranks that hold parts of the same layers read the same share.
    """
    share = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
    if not share:
        return 0, 1
    return int(share["rank"]), int(share["num_replicas"])


def has_whole_model(trainer: Trainer) -> bool:
    """Whether a rank can run the model by itself, without the others joining in."""
    return isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
