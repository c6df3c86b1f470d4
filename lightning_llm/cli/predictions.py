"""The file that ``lightning-llm predict`` writes: what each row of the data is to the model."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_llm.callbacks._meeting import data_replica, gather_objects

Entry = dict[str, float | int]


def write_predictions(trainer: Trainer, batches: list[Any], output: Path) -> None:
    """Write one JSON line per row of the data: its NLL in nats and its number of target tokens.

    Lines are in the order of the data, however many ranks shared it, and rows that only fill up
    the last batches have none.

    Args:
        trainer: After ``predict``; all ranks call it, the first writes.
        batches: What it returned on this rank, ``{"nll": (B, T), "num_tokens": (B,)}`` each.
        output: The file.
    """
    by_rank = gather_objects(trainer, dict(_numbered(trainer, batches)))
    entries = {number: entry for part in by_rank for number, entry in part.items()}
    if not trainer.is_global_zero:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    with temporary.open("w", encoding="utf-8") as file:
        for number in sorted(entries):
            file.write(json.dumps(entries[number]) + "\n")
    temporary.replace(output)
    sys.stderr.write(f"predictions: {output}\n")


def _numbered(trainer: Trainer, batches: list[Any]) -> Iterator[tuple[int, Entry]]:
    """The entry of each row that this rank has read, and the row's place in the data."""
    indices = getattr(trainer.predict_dataloaders, "indices", None)
    replica, replicas = data_replica(trainer)
    # Where the loader does not say: Lightning's sampler for predictions deals rows out in turns.
    place = replica
    for batch, numbers in zip(batches, indices() if indices is not None else batches):
        nll, counts = batch["nll"].float(), batch.get("num_tokens")
        if counts is None:  # of a predict_step that does not count
            counts = (nll != 0).sum(-1)
        sums = zip(nll.sum(-1).tolist(), counts.tolist())
        for row, (nll_sum, count) in enumerate(sums):
            number = place if indices is None else int(numbers[row])
            place += replicas
            if number >= 0:  # else padding
                yield number, {"nll_sum": nll_sum, "num_tokens": count}
