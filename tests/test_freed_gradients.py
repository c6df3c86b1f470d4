"""When the gradients of a step leave memory."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig

CONFIG = TransformerConfig(vocab_size=31, max_seq_len=8, n_layers=1, dim=16, n_heads=2)


class AtTheEnds(L.Callback):
    """Counts gradients at the end of each micro-batch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.counts.append(sum(p.grad is not None for p in module.parameters()))


class BeforeZeroGrad(L.Callback):
    """What users of Lightning's hook see there."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.seen.append(all(p.grad is not None for p in module.parameters()))


def fit(*callbacks: L.Callback, **options: Any) -> CausalLM:
    torch.manual_seed(0)
    ids = torch.randint(0, 31, (4, 9))
    rows = [{"input_ids": row[:-1], "shift_labels": row[1:]} for row in ids]
    module = CausalLM(CONFIG)
    L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=list(callbacks),
        **options,
    ).fit(module, DataLoader(rows, batch_size=1))
    return module


@pytest.mark.parametrize(("accumulate", "kept"), [(1, [0, 0, 0, 0]), (2, [1, 0, 1, 0])])
def test_gone_after_the_step_and_kept_between_micro_batches(
    accumulate: int, kept: list[int]
) -> None:
    ends = AtTheEnds()
    fit(ends, accumulate_grad_batches=accumulate)
    assert [count > 0 for count in ends.counts] == [bool(flag) for flag in kept]


def test_kept_for_who_looks_at_them_there_with_the_same_weights() -> None:
    watcher, ends = BeforeZeroGrad(), AtTheEnds()
    watched = fit(watcher, ends)
    assert watcher.seen == [False, True, True, True]
    assert all(count > 0 for count in ends.counts)
    for kept, freed in zip(watched.parameters(), fit().parameters(), strict=True):
        assert torch.equal(kept, freed)
