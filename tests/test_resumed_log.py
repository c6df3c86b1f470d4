"""The logged loss of a resumed run is that of a run that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if "train_loss" in trainer.callback_metrics:
            self.seen[trainer.global_step] = float(trainer.callback_metrics["train_loss"])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [5, 4])  # between log points, and at one
def test_the_first_loss_after_a_resume_counts_the_steps_before(
    tmp_path: Path, accumulate: int, stop: int
) -> None:
    # All alike: this loader does not remember its place.
    rows = [{"input_ids": torch.arange(16), "labels": torch.arange(16)}] * 20

    def run(resume: Path | None = None) -> dict[int, float]:
        torch.manual_seed(0)
        config = TransformerConfig(vocab_size=61, max_seq_len=16, n_layers=1, dim=32, n_heads=4)
        losses = Losses()
        trainer = L.Trainer(
            max_steps=9,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=4,
            accumulate_grad_batches=accumulate,
            callbacks=[
                losses,
                ModelCheckpoint(
                    tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1
                ),
            ],
        )
        trainer.fit(CausalLM(config), DataLoader(rows, batch_size=1), ckpt_path=resume)
        return losses.seen

    whole = run()
    assert run(tmp_path / f"step={stop}.ckpt")[9] == pytest.approx(whole[9], rel=1e-9)
