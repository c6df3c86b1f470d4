"""Resuming under Lightning: what was trained on is not repeated, what was lost is."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_llm.data import TokenStore, TokenStoreWriter
from lightning_llm.data.loader import TokenLoader
from lightning_llm.data.packing import ConcatWindows

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]
ROWS = 22


class Recorder(pl.LightningModule):
    """Records the rows of each optimizer step."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.window: list[int] = []
        self.updates: list[list[int]] = []
        self.fail_at = fail_at
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        if self.seen == self.fail_at:
            raise RuntimeError("node lost")
        real = (batch["shift_labels"] != -100).any(dim=1)
        self.window += (batch["input_ids"][real, 0] // 2).tolist()
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        pass

    def on_before_optimizer_step(self, optimizer):
        self.updates.append(self.window)
        self.window = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(pl.LightningDataModule):
    def __init__(self, rows, micro: int = 2, num_workers: int = 0) -> None:
        super().__init__()
        self.rows, self.micro, self.num_workers = rows, micro, num_workers

    def train_dataloader(self):
        return TokenLoader(
            self.rows,
            micro_batch_size=self.micro,
            shuffle=True,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )

    def val_dataloader(self):
        return TokenLoader(self.rows, micro_batch_size=8, trainer=self.trainer)


class SaveAt(pl.Callback):
    """Saves in one hook at one of its calls."""

    def __init__(self, path: Path, hook: str, call: int) -> None:
        self.path, self.call, self.calls = path, call, 0
        setattr(self, hook, self._save)

    def _save(self, trainer, *args, **kwargs) -> None:
        if trainer.sanity_checking:
            return
        self.calls += 1
        if self.calls == self.call:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def rows(tmp_path) -> ConcatWindows:
    with TokenStoreWriter(tmp_path / "s", vocab_size=100) as writer:
        writer.add(np.arange(2 * ROWS + 1))
    return ConcatWindows(TokenStore(tmp_path / "s"), 2)


def flat(updates) -> list[int]:
    return list(chain.from_iterable(updates))


def fit(rows, *, ckpt=None, callbacks=(), micro=2, num_workers=0, fail_at=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_epochs": 3, "limit_val_batches": 0} | options,
    )
    module = Recorder(fail_at)
    expected = pytest.raises(RuntimeError, match="node lost") if fail_at else nullcontext()
    with expected:
        trainer.fit(module, datamodule=Data(rows, micro, num_workers), ckpt_path=ckpt)
    return module, trainer


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("accumulate", "batch"), [(1, 5), (1, 11), (1, 14), (2, 8), (2, 11)])
def test_saved_during_fit(rows, tmp_path, accumulate, batch, num_workers):
    options = {"accumulate_grad_batches": accumulate, "num_workers": num_workers}
    save = SaveAt(tmp_path / "c.ckpt", "on_train_batch_end", batch)
    whole, _ = fit(rows, callbacks=[save], **options)
    epochs = -(-ROWS // 2)
    assert sum(map(len, whole.updates)) == 3 * ROWS
    assert sorted(flat(whole.updates[: -(-epochs // accumulate)])) == list(range(ROWS))
    done = torch.load(tmp_path / "c.ckpt", weights_only=True)["global_step"]
    resumed, _ = fit(rows, ckpt=tmp_path / "c.ckpt", **options)
    assert resumed.updates == whole.updates[done:]


@pytest.mark.parametrize("bound", [{"max_epochs": 3}, {"max_epochs": None, "max_steps": 33}])
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end"])
@pytest.mark.parametrize("call", [1, 2])
def test_saved_around_the_end_of_an_epoch(rows, tmp_path, hook, call, bound):
    save = SaveAt(tmp_path / "c.ckpt", hook, call)
    options = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0, **bound}
    whole, _ = fit(rows, callbacks=[save], **options)
    resumed, _ = fit(rows, ckpt=tmp_path / "c.ckpt", **options)
    assert resumed.updates == whole.updates[11 * call :]


@pytest.mark.parametrize("bound", [{"max_epochs": 3}, {"max_epochs": None, "max_steps": 33}])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_saved_in_a_validation_between_batches(rows, tmp_path, call, bound):
    save = SaveAt(tmp_path / "c.ckpt", "on_validation_end", call)
    options = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0, "val_check_interval": 3}
    options |= bound
    whole, _ = fit(rows, callbacks=[save], **options)
    done = torch.load(tmp_path / "c.ckpt", weights_only=True)["global_step"]
    resumed, _ = fit(rows, ckpt=tmp_path / "c.ckpt", **options)
    assert resumed.updates == whole.updates[done:]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end", "on_train_end", None])
@pytest.mark.parametrize("max_steps", [4, 11, 15])
def test_a_run_that_reached_max_steps_goes_on_in_its_epoch(rows, tmp_path, max_steps, hook):
    whole, _ = fit(rows)
    save = []
    if hook is not None:
        calls = max_steps if hook == "on_train_batch_end" else -(-max_steps // 11)
        save = [SaveAt(tmp_path / "c.ckpt", hook, 1 if hook == "on_train_end" else calls)]
    _, trainer = fit(rows, callbacks=save, max_epochs=None, max_steps=max_steps)
    if hook is None:
        trainer.save_checkpoint(tmp_path / "c.ckpt")
    resumed, trainer = fit(rows, ckpt=tmp_path / "c.ckpt", max_epochs=None, max_steps=33)
    assert resumed.updates == whole.updates[max_steps:]
    assert trainer.current_epoch == 3


@pytest.mark.parametrize("bound", [{"max_epochs": 3}, {"max_epochs": None, "max_steps": 9}])
@pytest.mark.parametrize("limit", [5, 0.5])
def test_a_limited_epoch_ends_where_the_trainer_says(rows, tmp_path, limit, bound):
    options = {"limit_train_batches": limit, "accumulate_grad_batches": 2, **bound}
    save = SaveAt(tmp_path / "c.ckpt", "on_train_epoch_end", 1)
    whole, _ = fit(rows, callbacks=[save], **options)
    assert [len(update) for update in whole.updates] == [4, 4, 2] * 3
    resumed, _ = fit(rows, ckpt=tmp_path / "c.ckpt", **options)
    assert resumed.updates == whole.updates[3:]


@pytest.mark.parametrize(("accumulate", "fail_at"), [(1, 5), (2, 7), (2, 8), (4, 7), (4, 14)])
def test_an_interrupted_optimizer_step_is_taken_again(rows, tmp_path, accumulate, fail_at):
    """Whatever died with the process, the steps of both runs together are those of one."""
    whole, _ = fit(rows, accumulate_grad_batches=accumulate)
    save = SaveAt(tmp_path / "c.ckpt", "on_exception", 1)
    failed, _ = fit(rows, callbacks=[save], fail_at=fail_at, accumulate_grad_batches=accumulate)
    resumed, _ = fit(rows, ckpt=tmp_path / "c.ckpt", accumulate_grad_batches=accumulate)
    assert failed.updates + resumed.updates == whole.updates


@pytest.mark.parametrize(
    ("before", "after"), [((2, 2), (4, 1)), ((4, 1), (1, 4)), ((2, 2), (2, 1)), ((1, 8), (2, 4))]
)
@pytest.mark.parametrize("updates", [2, 3])
def test_another_split_of_the_global_batch_keeps_the_order(rows, tmp_path, before, after, updates):
    micro, accumulate = before
    save = SaveAt(tmp_path / "c.ckpt", "on_train_batch_end", updates * accumulate)
    whole, _ = fit(rows, callbacks=[save], micro=micro, accumulate_grad_batches=accumulate)
    done = torch.load(tmp_path / "c.ckpt", weights_only=True)["global_step"]
    micro, accumulate = after
    resumed, _ = fit(
        rows, ckpt=tmp_path / "c.ckpt", micro=micro, accumulate_grad_batches=accumulate
    )
    assert flat(resumed.updates) == flat(whole.updates[done:])
    assert all(len(update) <= micro * accumulate for update in resumed.updates)


def test_a_global_batch_that_does_not_fit_is_refused(rows, tmp_path):
    fit(rows, callbacks=[SaveAt(tmp_path / "c.ckpt", "on_train_batch_end", 4)])
    with pytest.raises(ValueError, match=r"after 8 samples .* was 2 and is now 6, which does not"):
        fit(rows, ckpt=tmp_path / "c.ckpt", micro=3, accumulate_grad_batches=2)
