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
from preempted_ranks import run
from ranks import srun

from lightning_llm.callbacks import Preemption
from lightning_llm.callbacks.preemption import Preempted
from lightning_llm.plugins.io import verify_checkpoint
from runs import start_ranks

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
@pytest.mark.parametrize(("world_size", "target"), [(1, 0), (2, 0)])
def test_a_signal_to_any_rank_saves_one_step_on_all(
    tmp_path: Path, world_size: int, target: int
) -> None:
    arguments = [str(tmp_path), "2", "ddp" if world_size > 1 else "alone", "1"]
    ranks = start_ranks("preempted_ranks.py", world_size, *arguments)
    wait_for_batch(ranks[target], 6)
    # As torchrun does: to the whole group of processes, and so to those that build batches.
    os.killpg(ranks[target].pid, signal.SIGTERM)
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [143] * world_size, outputs
    [file] = tmp_path.rglob("*.ckpt")
    assert file.name == "preempted.ckpt"
    assert verify_checkpoint(file)
    saved = torch.load(file, weights_only=True)
    # Asked for after batch 7 or so: the step is finished, and one more while ranks agree.
    assert 4 <= saved["global_step"] <= 8
    assert "SIGTERM: stopped after step" in outputs[0]
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
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
