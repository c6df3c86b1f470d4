"""Saves in a thread: a moment frozen, and no failure unheard."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from faults import forks, in_child, limit_file_size
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_llm.plugins import AtomicCheckpointIO, SaveWatcher
from lightning_llm.plugins.io import atomic, verify_checkpoint
from lightning_llm.plugins.io.snapshot import snapshot

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")


def test_a_snapshot_keeps_sharing_and_order_and_is_another_memory() -> None:
    weight = torch.randn(4, 3)
    state = OrderedDict(a=weight, b=weight[1:].T, c=torch.nn.Parameter(weight), n=torch.tensor(1))
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    copied = snapshot({"state": state, "list": [weight, (1, "x")], "none": None})
    before = weight.clone()
    weight.zero_()
    assert torch.equal(copied["state"]["a"], before)
    assert torch.equal(copied["state"]["b"], before[1:].T)
    assert copied["state"]._metadata == state._metadata
    pointers = {copied["state"][k].untyped_storage().data_ptr() for k in "abc"}
    assert pointers == {copied["list"][0].untyped_storage().data_ptr()}
    assert copied["list"][1] == (1, "x")


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    weight = torch.randn(10_000)
    io = AtomicCheckpointIO(asynchronous=True)
    io.save_checkpoint({"a": weight, "b": weight}, tmp_path / "a.ckpt")
    io.teardown()
    assert (tmp_path / "a.ckpt").stat().st_size < 1.2 * 40_000


def test_what_is_written_is_the_moment_of_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write = threading.Event(), atomic.write_checkpoint

    def slow(*args: Any) -> None:
        go.wait(10)
        write(*args)

    monkeypatch.setattr(atomic, "write_checkpoint", slow)
    weight, io = torch.zeros(100), AtomicCheckpointIO(asynchronous=True)
    io.save_checkpoint({"weight": weight}, tmp_path / "a.ckpt")
    weight += 1  # training goes on
    assert not (tmp_path / "a.ckpt").exists()
    go.set()
    io.teardown()
    assert verify_checkpoint(tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt")["weight"].sum() == 0


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return self.layer(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(pl.Callback):
    """Saves at a step, and lets the thread end before training goes on."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            thread = trainer.strategy.checkpoint_io.background._thread
            if thread is not None:
                thread.join()


def fit(path: Path, step: int, asynchronous: bool, watch: bool) -> Tiny:
    module = Tiny()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        plugins=[AtomicCheckpointIO(asynchronous=asynchronous)],
        callbacks=[SaveAt(path, step), *([SaveWatcher()] if watch else [])],
    )
    try:
        trainer.fit(module, torch.utils.data.DataLoader(torch.ones(20, 4)))
    finally:
        print(f"trained {module.steps} steps")
    return module


@forks
@pytest.mark.parametrize(
    ("asynchronous", "watch", "step", "trained"),
    [(False, False, 3, 3), (True, True, 3, 3), (True, False, 3, 6), (True, True, 6, 6)],
)
def test_no_run_ends_well_with_a_failed_save(
    tmp_path: Path, asynchronous: bool, watch: bool, step: int, trained: int
) -> None:
    path = tmp_path / "a.ckpt"

    def run() -> None:
        limit_file_size(1000)
        fit(path, step, asynchronous, watch)

    status, output = in_child(run)
    assert status == 1
    assert f"trained {trained} steps" in output
    assert f"checkpoint {path} was not saved: File too large" in output
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_deleted_before_the_save_has_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write = threading.Event(), atomic.write_checkpoint

    def slow(checkpoint: Any, path: Path) -> None:
        go.wait(10)
        if path.name == "bad.ckpt":
            raise OSError("disk full")
        write(checkpoint, path)

    io = AtomicCheckpointIO()
    for name in ("a.ckpt", "b.ckpt"):
        io.save_checkpoint({"n": 1}, tmp_path / name)
    monkeypatch.setattr(atomic, "write_checkpoint", slow)
    io.asynchronous = True
    io.save_checkpoint({"n": 2}, tmp_path / "c.ckpt")
    io.remove_checkpoint(tmp_path / "a.ckpt")  # returns: training goes on
    assert (tmp_path / "a.ckpt").exists()
    assert not (tmp_path / "c.ckpt").exists()
    go.set()
    io.save_checkpoint({"n": 3}, tmp_path / "bad.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.ckpt", "c.ckpt"]
    io.remove_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(OSError, match="disk full"):
        io.teardown()


def test_saves_of_model_checkpoint_are_all_there_at_the_end(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO(asynchronous=True)],
        callbacks=[
            ModelCheckpoint(
                tmp_path,
                every_n_train_steps=1,
                save_top_k=2,
                monitor="step",
                mode="max",
                save_last="link",
            ),
            SaveWatcher(),
        ],
    )
    trainer.fit(Tiny(), torch.utils.data.DataLoader(torch.ones(20, 4)))
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"epoch=0-step=3.ckpt", "epoch=0-step=4.ckpt", "last.ckpt"}
    assert all(verify_checkpoint(p) for p in tmp_path.iterdir())


def test_hyperparameters_that_could_not_be_loaded_stop_the_run_before_it_trains(
    tmp_path: Path,
) -> None:
    class WithPath(Tiny):
        def __init__(self, **values: Any) -> None:
            super().__init__()
            self.save_hyperparameters(values)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[SaveWatcher()],
    )
    loader = torch.utils.data.DataLoader(torch.ones(20, 4))
    module = WithPath(folder=tmp_path, lr=0.1, size=(1, 2), dtype=torch.float16)
    with pytest.raises(TypeError, match=r"of WithPath .*with: folder=.*PosixPath\)\. Save"):
        trainer.fit(module, loader)
    assert module.steps == 0
    trainer.fit(WithPath(lr=0.1, names={"a": [1, None]}, dtype=torch.float16), loader)


def test_an_address_is_refused_before_training(tmp_path: Path) -> None:
    module = Tiny()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=AtomicCheckpointIO(),
        callbacks=[SaveWatcher(), ModelCheckpoint("memory://bucket/run")],
    )
    with pytest.raises(ValueError, match="memory:// addresses are not read or written"):
        trainer.fit(module, torch.utils.data.DataLoader(torch.ones(20, 4)))
    assert module.steps == 0
