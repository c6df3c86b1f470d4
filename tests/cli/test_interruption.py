"""Ctrl-C to a command: what is saved, what is said, and with which status it ends."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from test_commands import config_of, make_text, recipe

from lightning_llm.cli import main
from lightning_llm.cli.interruption import command_to_continue

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    make_text(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts this so
    yield tmp_path
    signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored


def press(monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    """Press Ctrl-C once, in a hook of the module."""

    def pressed(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(pl.LightningModule, hook, pressed)


def test_ctrl_c_saves_and_names_the_command_that_continues(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    press(monkeypatch, "on_before_zero_grad")
    arguments = ["fit", "--config", config_of(folder), "--trainer.max_steps", "6"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--overwrite"])
    assert stop.value.code == 130
    said = caplog.text
    again = shlex.join(["lightning-llm", *arguments, "--resume", "auto"])
    assert f"continue with {again}" in said
    capsys.readouterr()
    assert main(shlex.split(again)[1:]) == 0
    assert "preempted.ckpt (step 1)" in capsys.readouterr().err


def test_before_the_first_step_it_says_that_nothing_was_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    press(monkeypatch, "on_fit_start")
    monkeypatch.delattr("lightning_llm.steps.TokenLossModule.on_fit_start")
    assert main(["fit", "--config", config_of(folder)]) == 130
    said = capsys.readouterr().err
    assert "interrupted before the first step was done: nothing was saved" in said
    assert not list(folder.rglob("*.ckpt"))


def test_an_evaluation_ends_with_130_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    press(monkeypatch, "on_validation_start")
    assert main(["validate", "--config", config_of(folder)]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_the_command_keeps_all_but_what_chooses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--config", "a b.yaml", "--ckpt_path", "x", "--resume=must", "--overwrite", "--a=1"]
    expected = "lightning-llm fit --config 'a b.yaml' --a=1 --resume auto"
    assert command_to_continue(given) == expected
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert command_to_continue(given) == "the same command and --resume auto"
