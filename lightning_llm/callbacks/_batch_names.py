"""Naming micro-batches of a step by what is in them, over all ranks."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L

from lightning_llm.callbacks._meeting import gather_objects

_SHOWN = 32  # samples named per micro-batch


def name_batches(
    trainer: L.Trainer, culprits: list[tuple[int, int]], all_batches: list[tuple[int, int]]
) -> str:
    """Name the culprits of all ranks; where no rank has one, all batches of the step.

    Samples and documents are named where the loader has ``indices(first)`` and
    ``documents(sample)``, and is still in the epoch.

    Args:
        trainer: The trainer; all ranks call it.
        culprits: Epoch and index of this rank's micro-batches with a bad loss.
        all_batches: Those of all its micro-batches.
    """
    by_rank = gather_objects(
        trainer, (_describe(trainer, culprits), _describe(trainer, all_batches))
    )
    pick = 0 if any(bad for bad, _ in by_rank) else 1
    named = [f"rank {rank}, {text}" for rank, both in enumerate(by_rank) for text in both[pick]]
    return ("in " if pick == 0 else "in one of ") + "; ".join(named)


def _describe(trainer: L.Trainer, batches: list[tuple[int, int]]) -> list[str]:
    loader = trainer.train_dataloader
    texts = []
    for epoch, index in batches:
        text = f"batch {index} of epoch {epoch}"
        indices = getattr(loader, "indices", None)
        if callable(indices) and getattr(loader, "epoch", None) == epoch:
            samples = [int(i) for i in next(iter(indices(index)), ()) if i >= 0]
            text += f" (samples {_listed(samples)}{_documents(loader, samples)})"
        texts.append(text)
    return texts


def _documents(loader: Any, samples: list[int]) -> str:
    documents_of = getattr(loader, "documents", None)
    if not callable(documents_of):
        return ""
    found = {document for sample in samples for document in documents_of(sample)}
    return f"; documents {_listed(sorted(found))}"


def _listed(numbers: list[int]) -> str:
    more = ", ..." if len(numbers) > _SHOWN else ""
    return f"{', '.join(map(str, numbers[:_SHOWN]))}{more}"
