"""A checkpoint that training cannot go on from is refused, with the way out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_llm.module import CausalLM
from lightning_llm.optim import AdamW, Muon

CONFIG = {"n_layers": 1, "dim": 8, "n_heads": 1, "vocab_size": 11, "max_seq_len": 8}


def fit(optimizer: Any, steps: int, ckpt_path: Path | None = None) -> L.Trainer:
    ids = torch.randint(11, (8, 9), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row[:-1], "shift_labels": row[1:]} for row in ids]
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(CausalLM(CONFIG, optimizer=optimizer), DataLoader(rows), ckpt_path=ckpt_path)
    return trainer


adamw = partial(AdamW, lr=1e-3)


def test_weights_alone_are_no_run_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    fit(adamw, 1).save_checkpoint(path, weights_only=True)
    with pytest.raises(ValueError, match=r"weights\.ckpt holds weights alone .*export"):
        fit(adamw, 2, path)
    assert CausalLM.load_from_checkpoint(path).config.dim == 8


@pytest.mark.parametrize(
    ("first", "second"),
    [(adamw, partial(Muon, lr=1e-3)), (partial(torch.optim.SGD, lr=0.1), adamw)],
)
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before")
def test_another_optimizer_is_named(tmp_path: Path, first: Any, second: Any) -> None:
    path = tmp_path / "run.ckpt"
    fit(first, 1).save_checkpoint(path)
    names = rf"{first.func.__name__}, which .*{second.func.__name__} cannot go on from"
    with pytest.raises(ValueError, match=names):
        fit(second, 2, path)
    assert fit(first, 2, path).global_step == 2


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before")
def test_optimizers_of_one_family_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    fit(adamw, 1).save_checkpoint(path)
    assert fit(partial(torch.optim.AdamW, lr=1e-3), 2, path).global_step == 2
