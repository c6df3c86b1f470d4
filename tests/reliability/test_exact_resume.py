"""An interrupted run and the uninterrupted one: equal losses and weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from preempted_ranks import ROWS, run

from lightning_llm.callbacks import RandomState

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    # Four workers on a machine with two cores.
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*"),
]
BATCHES = ROWS // 2


class SaveAt(pl.Callback):
    """Saves after a batch of the whole run."""

    def __init__(self, path: Path, batch: int, hook: str = "on_train_batch_end") -> None:
        self.path, self.batch = path, batch
        setattr(self, hook, self._save)

    def _save(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batch", [6, BATCHES - 2, BATCHES, BATCHES + 4])
def test_bit_equal(tmp_path: Path, workers: int, accumulate: int, batch: int) -> None:
    file = tmp_path / "c.ckpt"
    options = {"workers": workers, "accumulate_grad_batches": accumulate, "max_epochs": 2}
    whole = run(tmp_path, callbacks=[SaveAt(file, batch)], **options)
    resumed = run(tmp_path, ckpt=file, **options)
    assert len(whole.losses) == 2 * BATCHES
    assert resumed.losses == whole.losses[batch:]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])


@pytest.mark.parametrize("batch", [7, BATCHES + 1])
def test_saved_inside_a_window_the_window_is_taken_again(tmp_path: Path, batch: int) -> None:
    file = tmp_path / "c.ckpt"
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    whole = run(tmp_path, callbacks=[SaveAt(file, batch)], **options)
    resumed = run(tmp_path, ckpt=file, **options)
    assert resumed.losses == whole.losses[batch - 1 :]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])


def test_without_random_state_dropout_is_another(tmp_path: Path) -> None:
    """The test above would notice."""
    file = tmp_path / "c.ckpt"
    whole = run(tmp_path, callbacks=[SaveAt(file, 6)], max_epochs=1)
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["lightning_llm.random_state"]
    torch.save(checkpoint, file)
    assert run(tmp_path, ckpt=file, max_epochs=1).losses != whole.losses[6:]


def test_another_number_of_ranks_restores_nothing_and_says_so(caplog: Any) -> None:
    class Trainer:
        world_size, global_rank, global_step, accumulate_grad_batches = 1, 0, 0, 1

    callback, before = RandomState(), torch.get_rng_state()
    callback.on_load_checkpoint(Trainer(), None, {"lightning_llm.random_state": [{}, {}]})
    with caplog.at_level("INFO"):
        callback.on_train_batch_start(Trainer(), None, None, 0)
    assert "random states of 2 ranks are not restored on 1" in caplog.text
    assert torch.equal(torch.get_rng_state(), before)
