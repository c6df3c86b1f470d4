"""``fit --resume``: the newest checkpoint that verifies, and what is said of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_commands import config_of, make_text, recipe

from lightning_llm.cli import main
from lightning_llm.cli.resume import checkpoint_to_resume
from lightning_llm.plugins import AtomicCheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
STATE = {"state_dict": {"w": torch.ones(100)}, "loops": {}, "optimizer_states": []}


def save(path: Path, age: int, **changes: Any) -> Path:
    AtomicCheckpointIO().save_checkpoint({**STATE, **changes}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def damage(path: Path, data: bytes) -> None:
    times = path.stat().st_mtime
    path.write_bytes(data)
    os.utime(path, (times, times))


def test_auto_skips_what_does_not_verify_and_says_why(tmp_path: Path, capsys: Any) -> None:
    good = save(tmp_path / "good.ckpt", age=10)
    save(tmp_path / "older.ckpt", age=20)
    content = good.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    torn = {"torn": content[:900], "empty": b"", "flipped": bytes(flipped), "text": b"x" * 900}
    for age, (name, data) in enumerate(torn.items()):
        damage(save(tmp_path / "deep" / f"{name}.ckpt", age), data)
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "weights.ckpt")
    (tmp_path / "shards.ckpt").mkdir()
    (tmp_path / "nowhere.ckpt").symlink_to(tmp_path / "gone")
    (tmp_path / "last.ckpt").symlink_to(good)
    assert checkpoint_to_resume("auto", None, tmp_path) == str(good)
    error = capsys.readouterr().err
    for line in (
        "torn.ckpt (900 bytes) is damaged",
        "empty.ckpt is empty (0 bytes)",
        "sha256 mismatch in",
        "text.ckpt (900 bytes) is not a checkpoint file",
        "weights.ckpt: it lacks loops, optimizer_states",
        "shards.ckpt: the folder lacks .metadata, meta.pt",
    ):
        assert line in error
    assert error.count("skipping") == 6
    assert f"resuming from {good}" in error


def test_last_is_the_newest_or_an_error(tmp_path: Path) -> None:
    save(tmp_path / "older.ckpt", age=20)
    newest = save(tmp_path / "deep" / "model.ckpt", age=10)
    assert checkpoint_to_resume("never", "last", tmp_path) == str(newest)
    with pytest.raises(FileNotFoundError, match="--ckpt_path last: no readable checkpoint under"):
        checkpoint_to_resume("never", "last", tmp_path / "none")


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_an_evaluation_says_when_nothing_is_loaded(
    tmp_path: Path, capsys: Any, command: str
) -> None:
    make_text(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    config = config_of(tmp_path)
    assert main([command, "--config", config]) == 0
    assert "no --ckpt_path: these are the weights" in capsys.readouterr().err
    assert main([command, "--config", config, "--ckpt_path", "last"]) == 1
    assert "--ckpt_path last: no readable checkpoint" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path: Path, capsys: Any) -> None:
    assert checkpoint_to_resume("auto", None, tmp_path / "none") is None
    assert "starting fresh" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no readable checkpoint"):
        checkpoint_to_resume("must", None, tmp_path)
    with pytest.raises(ValueError, match=r"leave --ckpt_path out"):
        checkpoint_to_resume("auto", "a.ckpt", tmp_path)


@pytest.mark.parametrize("command", ["fit", "generate", "export"])
def test_urls_are_refused_by_every_command(tmp_path: Path, capsys: Any, command: str) -> None:
    make_text(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    url = "http://127.0.0.1:1/evil.ckpt"
    arguments = {
        "fit": ["--config", config_of(tmp_path), "--ckpt_path", url],
        "generate": ["--checkpoint", url, "--prompt", "x"],
        "export": ["--checkpoint", url, "--output", str(tmp_path / "out")],
    }
    assert main([command, *arguments[command]]) == 1
    assert "http:// addresses are not read or written" in capsys.readouterr().err


def test_command_line_seals_checkpoints_and_refuses_altered_ones(
    tmp_path: Path, capsys: Any
) -> None:
    make_text(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    assert main(["fit", "--config", config_of(tmp_path)]) == 0
    file = tmp_path / "run" / "checkpoints" / "model.ckpt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    capsys.readouterr()
    for command in (
        ["fit", "--config", config_of(tmp_path), "--ckpt_path", str(file)],
        ["generate", "--checkpoint", str(file), "--prompt", "the"],
        ["fit", "--config", config_of(tmp_path), "--resume", "must"],
    ):
        assert main(command) == 1
        assert f"sha256 mismatch in {file}" in capsys.readouterr().err


@pytest.mark.distributed
def test_a_signal_ends_fit_with_143_and_resume_goes_on(tmp_path: Path, capsys: Any) -> None:
    make_text(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    command = [sys.executable, "-m", "lightning_llm.cli", "fit", "--config", config_of(tmp_path)]
    command += ["--trainer.max_steps", "100000", "--trainer.devices", "2"]
    command += ["--trainer.strategy", "ddp", "--trainer.log_every_n_steps", "1"]
    log = tmp_path / "run" / "lightning_logs" / "version_0" / "metrics.csv"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(1200):
        if process.poll() is not None or (log.exists() and log.stat().st_size > 100):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    file = tmp_path / "run" / "checkpoints" / "preempted.ckpt"
    step = torch.load(file, weights_only=True)["global_step"]
    arguments = ["--resume", "must", "--data.init_args.micro_batch_size", "8"]
    command = ["fit", "--config", config_of(tmp_path), "--trainer.max_steps", str(step + 2)]
    assert main([*command, *arguments]) == 0
    assert f"resuming from {file}" in capsys.readouterr().err
    model = tmp_path / "run" / "checkpoints" / "model.ckpt"
    assert torch.load(model, weights_only=True)["global_step"] == step + 2


def test_a_checkpoint_may_be_named_by_the_folder_of_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (2, 10):
        whole = {"global_step": step, "state_dict": {}, "loops": {}, "optimizer_states": []}
        torch.save(whole, folder / f"step-{step}.ckpt")
    (folder / "torn.ckpt").write_bytes(b"PK torn")
    chosen = checkpoint_to_resume("never", str(tmp_path / "run"), tmp_path / "elsewhere")
    assert chosen == str((folder / "step-10.ckpt").resolve())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: the folder holds no readable checkpoint"):
        checkpoint_to_resume("never", str(tmp_path / "empty"), tmp_path / "elsewhere")
