"""What one callback logs does not depend on which others stand before or behind it."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import VOCAB, Bigram, loader, make_rows, trainer
from lightning.pytorch import Callback

from lightning_llm.callbacks import FiniteGuard, SpeedMonitor, TokenProgressBar
from lightning_llm.module import CausalLM

CONFIG = {"n_layers": 1, "dim": 8, "n_heads": 1, "vocab_size": VOCAB, "max_seq_len": 8}


def targets(rows: list[Any]) -> int:
    return sum(int((row["shift_labels"] != -100).sum()) for row in rows)


class Logged(Callback):
    """Notes what was logged at each step, as the trainer shows it once the batch is over."""

    def __init__(self) -> None:
        self.tokens: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.note(trainer)

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self.note(trainer)

    def note(self, trainer: Any) -> None:
        if "tokens_seen" in trainer.callback_metrics:
            step = trainer.global_step // trainer.log_every_n_steps * trainer.log_every_n_steps
            self.tokens[step] = float(trainer.callback_metrics["tokens_seen"])


@pytest.mark.parametrize("module", [Bigram, lambda: CausalLM(CONFIG)])
@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (1, 3), (2, 2)])
def test_tokens_of_every_order(module: Any, accumulate: int, every: int) -> None:
    rows = make_rows(12)
    expected = {
        step: targets(rows[: step * accumulate])
        for step in range(every, 12 // accumulate + 1, every)
    }
    for order in permutations(range(4)):
        logged = Logged()
        callbacks = [SpeedMonitor(), FiniteGuard(), TokenProgressBar(), logged]
        run = trainer(
            callbacks=[callbacks[i] for i in order],
            log_every_n_steps=every,
            accumulate_grad_batches=accumulate,
            enable_progress_bar=True,
        )
        run.fit(module(), loader(rows))
        assert logged.tokens == expected, order
        assert callbacks[0].tokens_seen == targets(rows[: max(expected) * accumulate])


class SavesAt(Callback):
    """Saves while a batch ends, as a callback that stands anywhere may."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if args[-1] == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("saves_first", [True, False])
@pytest.mark.parametrize("batch", [2, 3, 4])
def test_a_checkpoint_counts_the_steps_that_were_taken(
    saves_first: bool, batch: int, tmp_path: Path
) -> None:
    """Three micro-batches a step: a window that is open is taken again after a resume."""
    rows = make_rows(9)
    callbacks: list[Callback] = [SpeedMonitor()]
    callbacks.insert(0 if saves_first else 1, SavesAt(batch, tmp_path / "c.ckpt"))
    run = trainer(callbacks=callbacks, accumulate_grad_batches=3, log_every_n_steps=50)
    run.fit(Bigram(), loader(rows))
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    [state] = [s for key, s in saved["callbacks"].items() if "SpeedMonitor" in key]
    assert saved["global_step"] == (batch + 1) // 3
    assert state["tokens_seen"] == targets(rows[: (batch + 1) // 3 * 3])


def test_saving_without_training_counts_nothing(tmp_path: Path) -> None:
    monitor = SpeedMonitor()
    run = trainer(callbacks=[monitor])
    run.validate(Bigram(), loader(make_rows(2)), verbose=False)
    run.save_checkpoint(tmp_path / "c.ckpt")
    assert monitor.tokens_seen == 0


class OfBatches(Bigram):
    """Takes whatever its loader yields, and trains on the ids it was told to take from it."""

    def __init__(self, take: Any) -> None:
        super().__init__()
        self.take = take

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.table(self.take(batch)).square().mean()


IDS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize(
    ("batch", "take", "tokens"),
    [
        ((IDS, IDS), lambda b: b[0], 12),
        ([IDS.int(), torch.ones(2, 6, dtype=torch.bool)], lambda b: b[0], 12),
        (IDS, lambda b: b, 12),
        ({"x": IDS, "y": IDS}, lambda b: b["x"], 12),
        ({"a": {"input_ids": IDS}, "b": (IDS[:1], IDS[:1])}, lambda b: b["a"]["input_ids"], 18),
        ([{"input_ids": IDS}, {"input_ids": IDS}], lambda b: b[0]["input_ids"], 24),
        ({"ids": [IDS.numpy().tolist()], "labels": torch.ones(2).long()}, lambda b: IDS, None),
        ((torch.ones(2, 6), torch.ones(2).long()), lambda b: IDS, None),
    ],
)
def test_tokens_of_foreign_batches(batch: Any, take: Any, tokens: int | None) -> None:
    monitor = SpeedMonitor()
    run = trainer(callbacks=[monitor], log_every_n_steps=1)
    data = torch.utils.data.DataLoader([batch] * 3, batch_size=None)
    if tokens is None:
        with pytest.warns(UserWarning, match="SpeedMonitor finds no tokens to count") as warned:
            run.fit(OfBatches(take), data)
        assert sum("SpeedMonitor" in str(w.message) for w in warned) == 1
        assert not {"tokens_seen", "tokens_per_second"} & set(run.callback_metrics)
        assert "step_seconds" in run.callback_metrics
    else:
        run.fit(OfBatches(take), data)
        assert run.callback_metrics["tokens_seen"] == 3 * tokens == monitor.tokens_seen
