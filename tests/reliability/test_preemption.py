"""A signal ends a run after a step, saved once, whichever rank it reaches."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from preempted_ranks import Dropout, run
from ranks import srun

from lightning_llm.callbacks import Preemption
from lightning_llm.callbacks.preemption import Preempted
from lightning_llm.plugins.io import verify_checkpoint
from runs import Net, batches, loader, start_ranks, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


def wait_for_batch(process: subprocess.Popen[str], number: int) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"batch {number}\n"):
            return "".join(lines)
    raise AssertionError("".join(lines))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "target", "number"), [(1, 0, signal.SIGTERM), (2, 0, signal.SIGINT)]
)
def test_a_signal_to_any_rank_saves_one_step_on_all(
    tmp_path: Path, world_size: int, target: int, number: signal.Signals
) -> None:
    arguments = [str(tmp_path), "2", "ddp" if world_size > 1 else "alone", "1"]
    ranks = start_ranks("preempted_ranks.py", world_size, *arguments)
    wait_for_batch(ranks[target], 6)
    # As torchrun does: to the whole group of processes, and so to those that build batches.
    os.killpg(ranks[target].pid, number)
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [128 + number] * world_size, outputs
    [file] = tmp_path.rglob("*.ckpt")
    assert file.name == "preempted.ckpt"
    assert verify_checkpoint(file)
    saved = torch.load(file, weights_only=True)
    # Asked for after batch 7 or so: the step is finished, and one more while ranks agree.
    assert 4 <= saved["global_step"] <= 8
    assert f"{number.name}: stopped after step" in outputs[0]
    if world_size > 1:
        lines = [[line for line in o.splitlines() if line.startswith("batch")] for o in outputs]
        assert lines[0][-1] == lines[1][-1]


class Signal(pl.Callback):
    """Sends this process a signal in the middle of training on a batch."""

    def __init__(self, batch: int, number: int = signal.SIGTERM) -> None:
        self.batch, self.number = batch, number

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("batch", [4, 5])
def test_the_window_is_finished_and_nothing_is_lost(
    tmp_path: Path, batch: int, number: int
) -> None:
    whole = run(tmp_path, accumulate_grad_batches=2)
    before = signal.getsignal(number)
    with pytest.raises(Preempted) as caught:
        run(tmp_path, callbacks=[Preemption(), Signal(batch, number)], accumulate_grad_batches=2)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    file = tmp_path / "preempted.ckpt"
    assert torch.load(file, weights_only=True)["global_step"] == 3
    resumed = run(tmp_path, ckpt=file, accumulate_grad_batches=2)
    assert resumed.losses == whole.losses[6:]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])


def interrupted(folder: Path, *events: pl.Callback, status: int, **options: Any) -> Preempted:
    with pytest.raises(Preempted) as caught:
        run(folder, callbacks=[Preemption(), *events], **options)
    assert caught.value.code == status
    return caught.value


def test_ctrl_c_says_what_it_does_and_a_second_one_leaves_at_once(
    tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    stop = interrupted(tmp_path, Signal(4, signal.SIGINT), status=130)
    assert stop.path == tmp_path / "preempted.ckpt"
    assert "Ctrl-C: saving after this step; Ctrl-C again leaves at once" in capfd.readouterr().err
    assert f"continue with fit(..., ckpt_path='{stop.path}')" in caplog.text
    stop.path.unlink()
    twice = [Signal(4, signal.SIGINT), Signal(4, signal.SIGINT)]
    assert interrupted(tmp_path, *twice, status=130).path is None
    assert not list(tmp_path.glob("*.ckpt"))
    assert "Ctrl-C again: left at once" in capfd.readouterr().err


class EarlySignal(pl.Callback):
    """Sends Ctrl-C when nothing is trained yet."""

    def on_sanity_check_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


class Validated(Dropout):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_ctrl_c_before_the_first_batch_ends_the_run_as_usual(tmp_path: Path) -> None:
    data = loader(batches(2))
    fit = trainer(callbacks=[Preemption(), EarlySignal()], default_root_dir=tmp_path).fit
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as caught:
            fit(Validated(), data, data)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert isinstance(caught.value.__context__, KeyboardInterrupt)
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(tmp_path, callbacks=[Preemption(), Signal(4, signal.SIGINT)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.glob("*.ckpt"))


class NoLoss(Net):
    """Every step is left out."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class ByHand(Net):
    """Steps every third batch, or never."""

    def __init__(self, every: int | None) -> None:
        super().__init__()
        self.automatic_optimization, self.every = False, every

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.layers(batch).square().mean())
        if self.every and batch_idx % self.every == self.every - 1:
            optimizer.step()
            optimizer.zero_grad()


class AtBatch(pl.Callback):
    def __init__(self, batch: int) -> None:
        self.batch, self.seen = batch, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.seen = args[-1]
        if self.seen == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize(
    ("module", "batch", "last", "options"),
    [
        (NoLoss, 4, 4, {}),
        (NoLoss, 4, 5, {"accumulate_grad_batches": 3}),
        (lambda: ByHand(None), 4, 4, {}),
        (lambda: ByHand(3), 4, 5, {}),
    ],
)
def test_a_signal_counts_where_the_step_stands_still(
    tmp_path: Path, module: Any, batch: int, last: int, options: dict[str, Any]
) -> None:
    event = AtBatch(batch)
    with pytest.raises(Preempted):
        trainer(callbacks=[Preemption(), event], default_root_dir=tmp_path, **options).fit(
            module(), loader(batches(40))
        )
    assert event.seen == last
    assert (tmp_path / "preempted.ckpt").is_file()


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `scontrol` was asked for, and which checkpoints there were when it was."""
    log, scontrol = tmp_path / "requeued", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ `ls -A {tmp_path} | grep ckpt` >> {log}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    return log


def test_a_requeued_job_is_saved_where_it_looks_and_requeued(
    tmp_path: Path, requeued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in srun(0, 1, 0).items():
        monkeypatch.setenv(name, value)
    # Lightning lets a requeued job continue by itself: the second run goes on at the fifth batch.
    steps = []
    for batch, number, asked in ((4, signal.SIGTERM, False), (7, signal.SIGUSR1, True)):
        with pytest.raises(Preempted) as caught:
            run(tmp_path, callbacks=[Preemption(), Signal(batch, number)])
        assert caught.value.code == 128 + number
        assert requeued.exists() is asked
        [file] = tmp_path.glob("*ckpt*")
        assert verify_checkpoint(file)
        steps.append((file.name, torch.load(file, weights_only=True)["global_step"]))
    assert steps == [("hpc_ckpt_1.ckpt", 5), ("hpc_ckpt_2.ckpt", 8)]
    assert requeued.read_text() == "requeue 77 hpc_ckpt_2.ckpt\n"


@pytest.mark.distributed
def test_tasks_of_a_job_are_requeued_once_and_go_on(tmp_path: Path, requeued: Path) -> None:
    for start in (1, 2):
        tasks = start_ranks("preempted_ranks.py", 2, str(tmp_path), "1", "sharded", launcher=srun)
        told = wait_for_batch(tasks[1], 6 * start)
        tasks[1].send_signal(signal.SIGUSR1)
        outputs = [task.communicate(timeout=60)[0] for task in tasks]
        assert [task.returncode for task in tasks] == [128 + signal.SIGUSR1] * 2, outputs
        # The second start goes on, without being asked to, where the first was saved.
        assert ("batch 2\n" in told) is (start == 1)
        asked = requeued.read_text().splitlines()
        assert asked == [f"requeue 77 hpc_ckpt_{number}.ckpt" for number in range(1, start + 1)]
        assert (tmp_path / f"hpc_ckpt_{start}.ckpt" / "meta.pt").is_file()


def test_a_job_that_is_not_requeued_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in srun(0, 1, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(match="did not requeue job 77"), pytest.raises(Preempted):
        run(tmp_path, callbacks=[Preemption(), Signal(4, signal.SIGUSR1)])
    assert (tmp_path / "hpc_ckpt_1.ckpt").is_file()


def test_an_unknown_signal_is_named() -> None:
    with pytest.raises(ValueError, match="no SIGNOTHING"):
        Preemption(signals=("SIGTERM", "SIGNOTHING"))


@pytest.mark.distributed
def test_a_dead_rank_ends_the_others(tmp_path: Path) -> None:
    ranks = start_ranks("preempted_ranks.py", 2, str(tmp_path), "1", "ddp")
    wait_for_batch(ranks[1], 3)
    ranks[1].kill()
    output, _ = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode not in (0, 143)
    assert "Connection closed by peer" in output or "Connection reset by peer" in output
    ranks[1].communicate()
