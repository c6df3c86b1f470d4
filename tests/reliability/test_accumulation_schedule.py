"""A run resumed inside an epoch goes on with the accumulation planned for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from preempted_ranks import run
from torch.utils.data import DataLoader

from lightning_llm import CausalLM


class SaveAt(pl.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("stop", [5, 14])  # in an epoch of threes, and in one of twos
def test_a_foreign_module_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    def fit(ckpt: Path | None = None) -> Any:
        # RandomState, which `run` puts first, has to wait for the schedule to look at the factor.
        plan = GradientAccumulationScheduler({0: 3, 1: 2})
        return run(tmp_path, ckpt=ckpt, callbacks=[plan, SaveAt(stop, file)], max_epochs=2)

    file = tmp_path / "model.ckpt"
    whole, resumed = fit(), fit(file)
    # 22 batches an epoch: 8 steps of three (the last of one), then 11 of two.
    assert whole.trainer.global_step == resumed.trainer.global_step == 19
    trained = stop * 3 if stop < 8 else 22 + (stop - 8) * 2
    assert resumed.losses == whole.losses[trained:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(index, index + 5) % 7
        return {"input_ids": ids[:-1], "shift_labels": ids[1:]}


class AccumulatedAt(pl.Callback):
    def __init__(self) -> None:
        self.factors: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.factors.append(trainer.accumulate_grad_batches)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than")
@pytest.mark.filterwarnings("ignore:When using `Trainer.accumulate_grad_batches != 1")
def test_our_modules_do_so_without_a_callback(tmp_path: Path) -> None:
    config = {"vocab_size": 7, "n_layers": 1, "dim": 8, "n_heads": 1, "max_seq_len": 4}

    def fit(ckpt: Path | None) -> tuple[pl.Trainer, list[int]]:
        seen = AccumulatedAt()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[GradientAccumulationScheduler({0: 2, 1: 4}), seen, SaveAt(5, file)],
        )
        trainer.fit(CausalLM(config), DataLoader(Rows()), ckpt_path=ckpt)  # type: ignore[arg-type]
        return trainer, seen.factors

    file = tmp_path / "model.ckpt"
    assert fit(None)[0].global_step == 6
    resumed, factors = fit(file)
    assert resumed.global_step == 6
    assert factors == [4] * 4
