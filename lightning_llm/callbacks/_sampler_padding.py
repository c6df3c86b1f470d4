"""Rows that a DistributedSampler repeats so that all ranks get equally many samples.

torch's ``DistributedSampler`` (which Lightning puts into evaluation loaders too) repeats the first
samples when the dataset size is not a multiple of the number of ranks. Position ``p`` of the padded
order is a repetition if ``p >= len(dataset)``, and rank ``r`` of ``R`` reads positions ``r``,
``r + R``, ... So a rank reads at most one repetition: its last sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import BatchSampler, DistributedSampler

# A subclass with an order of its own may well not repeat anything.
_PADDING_ORDERS = (DistributedSampler.__iter__, DistributedSamplerWrapper.__iter__)


class PaddedBatch(NamedTuple):
    """The last batch of a padded loader; every rank has one, at the same index."""

    size: int  # samples in the batch, the same on all ranks
    kept: int  # samples that are no repetition: size on some ranks, size - 1 on others


class LoaderPadding(NamedTuple):
    """How the loader of this rank is padded."""

    batch_size: int
    num_samples: int  # of this rank, the repetition included
    repeats: bool  # whether this rank has a repetition

    def batch(self, batch_idx: int) -> PaddedBatch | None:
        """The padded batch if ``batch_idx`` is the one, else ``None``."""
        size = self.num_samples - batch_idx * self.batch_size
        if not 0 < size <= self.batch_size:
            return None
        return PaddedBatch(size, size - self.repeats)


def loader_padding(loader: Any) -> LoaderPadding | None:
    """The padding of a dataloader; ``None`` if no rank has any."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    sampler: Any
    if batch_sampler is None:  # automatic batching is off: a batch is a sample
        sampler, batch_size = getattr(loader, "sampler", None), 1
    elif getattr(type(batch_sampler), "__iter__", None) is BatchSampler.__iter__:
        # Its own, or a subclass that only adds to it.
        sampler, batch_size = batch_sampler.sampler, batch_sampler.batch_size
    else:
        _warn_of_repetitions(batch_sampler)
        return None
    if not _repeats(sampler):
        return None
    if type(sampler).__iter__ not in _PADDING_ORDERS:
        return None
    size = len(sampler.dataset)  # type: ignore[arg-type]
    last_position = (sampler.num_samples - 1) * sampler.num_replicas + sampler.rank
    return LoaderPadding(batch_size, sampler.num_samples, last_position >= size)


def _repeats(sampler: Any) -> bool:
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return False
    return sampler.total_size > len(sampler.dataset)  # type: ignore[arg-type]


def _warn_of_repetitions(batch_sampler: Any) -> None:
    """Where batches are put together in an order of their own, no row is known to be repeated."""
    sampler: Any = getattr(batch_sampler, "sampler", None)
    if _repeats(sampler):
        repeated = sampler.total_size - len(sampler.dataset)
        rank_zero_warn(
            f"the evaluation counts {repeated} of {len(sampler.dataset)} rows twice: "
            f"DistributedSampler repeats them to give all ranks equally many, and "
            f"{type(batch_sampler).__name__} has an order of its own, in which they cannot be "
            "found. Evaluate on one device, or let the number of rows be a multiple of the ranks"
        )


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """The loaders of the running evaluation by ``dataloader_idx``; none if batches mix them."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    if not isinstance(loaders, CombinedLoader):
        return CombinedLoader(loaders, "sequential").flattened
    return loaders.flattened if loaders._mode == "sequential" else []
