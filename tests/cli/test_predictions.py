"""The file of `predict` where several ranks share the data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_llm.cli import predictions

# Ten rows of one target each, whose NLL is their number; that of a target may well be 0.
NLL = torch.arange(10.0)[:, None]


def rank(number: int, indices: list[list[int]] | None) -> Any:
    share = {"num_replicas": 2, "rank": number}
    loader = SimpleNamespace() if indices is None else SimpleNamespace(indices=lambda: indices)
    return SimpleNamespace(
        world_size=2,
        is_global_zero=number == 0,
        strategy=SimpleNamespace(distributed_sampler_kwargs=share),
        predict_dataloaders=loader,
    )


@pytest.mark.parametrize("loader", ["ours", "another"])
def test_rows_of_all_ranks_are_written_in_the_order_of_the_data(
    loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loader == "ours":  # three rows a rank and step; the last are filled up
        rows = [[[0, 1, 2], [6, 7, -1]], [[3, 4, 5], [8, 9, -1]]]
    else:  # in turns, as a DistributedSampler deals them out
        rows = [[[0, 2, 4], [6, 8]], [[1, 3, 5], [7, 9]]]
    parts: list[Any] = []

    def gather(trainer: Any, value: Any) -> list[Any]:
        parts.append(value)
        return parts

    monkeypatch.setattr(predictions, "gather_objects", gather)
    output = tmp_path / "predictions.jsonl"
    for number in (1, 0):  # the first rank writes
        trainer = rank(number, rows[number] if loader == "ours" else None)
        batches = [
            {"nll": NLL[numbers], "num_tokens": torch.ones(len(numbers), dtype=torch.int64)}
            for numbers in rows[number]
        ]
        assert not output.exists()
        predictions.write_predictions(trainer, batches, output)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert written == [{"nll_sum": float(nll), "num_tokens": 1} for nll in NLL]
