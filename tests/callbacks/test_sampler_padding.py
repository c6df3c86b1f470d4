"""Which rows a DistributedSampler repeats, for batch samplers of a user's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from lightning_llm.callbacks._sampler_padding import loader_padding


class Named(BatchSampler):
    """A subclass that leaves the order alone."""

    def set_epoch(self, epoch: int) -> None: ...


class Reversed(BatchSampler):
    """A subclass with an order of its own."""

    def __iter__(self) -> Iterator[list[int]]:
        return reversed(list(super().__iter__()))  # type: ignore[return-value]


def loader(kind: type[BatchSampler], rank: int, rows: int) -> DataLoader[tuple[torch.Tensor]]:
    sampler = DistributedSampler(range(rows), num_replicas=3, rank=rank, shuffle=False)  # type: ignore[arg-type]
    return DataLoader(TensorDataset(torch.arange(rows)), batch_sampler=kind(sampler, 2, False))


@pytest.mark.parametrize("kind", [BatchSampler, Named])
def test_each_row_counts_once(kind: type[BatchSampler]) -> None:
    seen: list[int] = []
    for rank in range(3):
        data = loader(kind, rank, rows=7)
        padding = loader_padding(data)
        assert padding is not None
        for index, (batch,) in enumerate(data):
            padded = padding.batch(index)
            seen += batch[: len(batch) if padded is None else padded.kept].tolist()
    assert sorted(seen) == list(range(7))


def test_an_order_that_hides_repetitions_is_named() -> None:
    with pytest.warns(UserWarning, match="counts 2 of 7 rows twice.*Reversed has an order of its"):
        assert loader_padding(loader(Reversed, 0, rows=7)) is None
    assert loader_padding(loader(Reversed, 0, rows=6)) is None  # nothing is repeated: no warning
