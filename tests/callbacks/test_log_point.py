"""LogPoint: one reading for all, values that stay visible, and nothing left to do in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from lightning_llm.callbacks import SpeedMonitor
from lightning_llm.callbacks._lazy_sum import LazySum
from lightning_llm.callbacks._log_point import LogPoint
from lightning_llm.steps import TokenLossModule


class Tokens(TokenLossModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Bigram()

    def compute_loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        count = (batch["shift_labels"] != -100).sum()
        return self.net.mean_loss(batch) * count, count

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    def __init__(self) -> None:
        self.counted: list[float] = []
        self.pending: list[int] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        LogPoint.of(trainer).join(self, lambda: torch.tensor([trainer.global_step, 7.0]))

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if "train_loss" in trainer.callback_metrics:
            self.losses.append(float(trainer.callback_metrics["train_loss"]))

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # What the module logged before, this hook comes first.
        self.pending.append(len(list(trainer._results.valid_items())))
        if trainer.global_step % 3 == 0:
            self.counted += LogPoint.of(trainer).read(self, trainer.global_step, batch, outputs)


def test_values_are_read_together_and_stay_visible(tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(callbacks=[watch], log_every_n_steps=3, logger=CSVLogger(tmp_path))
    run.fit(Tokens(), loader(make_rows(7)))
    assert watch.counted == [3.0, 7.0, 6.0, 7.0]
    assert not any(watch.pending)  # Lightning has nothing of ours to collect anew
    assert len(watch.losses) == 4
    assert len(set(watch.losses)) == 2
    table = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = table[0].split(",").index("train_loss")
    logged = [float(line.split(",")[column]) for line in table[1:]]
    assert logged == sorted(set(watch.losses), key=watch.losses.index)


def test_a_second_run_of_the_trainer_starts_anew() -> None:
    run = trainer(callbacks=[SpeedMonitor()], log_every_n_steps=2)
    run.fit(Tokens(), loader(make_rows(4)))
    run.fit_loop.max_epochs = 3
    run.fit(Tokens(), loader(make_rows(4)))
    assert LogPoint.of(run).latest["train_loss"] == float(run.callback_metrics["train_loss"])


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_a_lazy_sum_is_a_sum(count: int) -> None:
    values = torch.arange(count, dtype=torch.float32) * 1e4 + 0.5
    total = LazySum()
    assert total.total() is None
    for value in values:
        total.add(value)
    assert total.total() == values.double().sum()
    total.clear()
    assert total.total() is None


def test_a_profiler_that_was_asked_for_stays() -> None:
    run = trainer(profiler=SimpleProfiler(), max_steps=1)
    run.fit(Tokens(), loader(make_rows(1)))
    profiler = run.profiler
    assert type(profiler) is SimpleProfiler
    assert any("on_train_batch_end" in action for action in profiler.recorded_durations)
