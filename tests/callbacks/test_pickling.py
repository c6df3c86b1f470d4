"""A trainer with parts of this package is pickled: for `ddp_spawn`, or by `torch.save(trainer)`."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_llm import CausalLM, callbacks
from lightning_llm.models import TransformerConfig
from lightning_llm.plugins import AtomicCheckpointIO, MasterWeightsPrecision

CONFIG = TransformerConfig(vocab_size=31, max_seq_len=8, n_layers=1, dim=16, n_heads=2)


class Pickled(L.Callback):
    """Pickles the trainer, with everything it holds, within a run."""

    def __init__(self) -> None:
        self.copies = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        pickle.loads(pickle.dumps(trainer))
        self.copies += 1


def test_a_trainer_is_pickled_within_a_run_and_after_it(tmp_path: Path) -> None:
    ids = torch.arange(36).view(4, 9) % 31
    loader = DataLoader([{"input_ids": r[:-1], "shift_labels": r[1:]} for r in ids], batch_size=2)
    pickled = Pickled()
    own = [
        callbacks.FiniteGuard(),
        callbacks.GarbageCollection(),
        callbacks.PerplexityMonitor(),
        callbacks.RandomState(),
        callbacks.RunReport(),
        callbacks.SpeedMonitor(),
        callbacks.StallGuard(),
        callbacks.StartupBanner(),
        callbacks.TokenProgressBar(),
    ]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        max_steps=2,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[*own, pickled],
        plugins=[AtomicCheckpointIO(), MasterWeightsPrecision()],
    )
    trainer.fit(CausalLM(CONFIG), loader, loader)
    assert pickled.copies == 2
    file = io.BytesIO()
    torch.save(trainer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert [type(c) for c in loaded.callbacks] == [type(c) for c in trainer.callbacks]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_plugin_is_copied_without_its_save(asynchronous: bool, tmp_path: Path) -> None:
    plugin = AtomicCheckpointIO(asynchronous)
    plugin.save_checkpoint({"x": torch.ones(3)}, tmp_path / "first.ckpt")
    copies = pickle.loads(pickle.dumps(plugin)), copy.deepcopy(plugin)
    plugin.teardown()
    for number, other in enumerate(copies):
        other.save_checkpoint({"x": torch.ones(3)}, tmp_path / f"{number}.ckpt")
        other.teardown()
        assert other.asynchronous == asynchronous
        assert torch.equal(other.load_checkpoint(tmp_path / f"{number}.ckpt")["x"], torch.ones(3))
