"""TokenProgressBar: what it says, where it is written over, and where it is not."""

from __future__ import annotations

import io
import math
import re
import sys
from typing import Any

import pytest
import torch
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch import Callback, Trainer

from lightning_llm.callbacks import PerplexityMonitor, SpeedMonitor, TokenProgressBar
from lightning_llm.callbacks._console import clock_time, printable, short_number


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Silent(Bigram):
    """Logs nothing in training."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss


def fit(module: Any = None, rows: int = 12, **options: Any) -> Trainer:
    options = {"max_epochs": 1, "log_every_n_steps": 2} | options
    callbacks = [TokenProgressBar(), *options.pop("callbacks", [])]
    run = trainer(**options, enable_progress_bar=True, callbacks=callbacks)
    run.fit(module or Silent(), loader(make_rows(rows)), loader(make_rows(3)))
    return run


def test_one_line_per_log_point_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    module = Silent()
    fit(module, accumulate_grad_batches=2, callbacks=[PerplexityMonitor()])
    text = capsys.readouterr().err
    assert "\r" not in text
    lines = [line for line in text.splitlines() if line.startswith("step")]
    assert [line.split("  ")[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6"]
    loss = sum(module.losses[4:8]) / 4
    assert f"loss {loss:.4g}  perplexity {math.exp(loss):.4g}  " in lines[1]
    assert re.search(r"  \d+:\d\d left$", lines[1])
    assert "66%" in lines[1]
    assert re.search(r"\d+ tokens  [\d.]+[kM]? tokens/s", lines[1])
    (results,) = [line for line in text.splitlines() if line.startswith("validation")]
    assert re.fullmatch(
        r"validation at step 6  val_loss [\d.]+  val_perplexity [\d.]+  took \d+:\d\d", results
    )
    assert re.search(r"^6 steps in \d+:\d\d$", text, re.MULTILINE)


def test_a_long_log_is_thinned_and_has_the_last_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_llm.callbacks.token_progress_bar._LINES_AT_ONCE", 3)
    fit(rows=12, log_every_n_steps=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    steps = [line.split("  ")[0] for line in lines]
    assert steps == ["step 1/12", "step 2/12", "step 3/12", "step 12/12"]


def test_speed_and_tokens_are_those_of_the_speed_monitor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    monitor = SpeedMonitor()
    run = fit(callbacks=[monitor])
    line = [row for row in capsys.readouterr().err.splitlines() if row.startswith("step")][-1]
    speed = short_number(float(run.callback_metrics["tokens_per_second"]))
    assert f"{short_number(monitor.tokens_seen)} tokens  {speed} tokens/s" in line


def test_a_terminal_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    fit(val_check_interval=6)
    first, rest = terminal.getvalue().split("\n", 1)
    assert first.count("\rstep") == 3
    assert rest.startswith("\rvalidation: batch 1/3")
    assert rest.count("\n") == 4  # validation, steps, validation, end


def test_prints_do_not_break_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Talks(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == 3:
                module.print("hello", 1)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(callbacks=[Talks()])
    shown = terminal.getvalue().split("hello 1\n")
    assert re.search(r"\rstep 2/12[^\r\n]*\r +\r$", shown[0])
    assert shown[1].startswith("step 2/12")


def test_evaluation_alone_counts_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run = trainer(enable_progress_bar=True, callbacks=[TokenProgressBar()])
    run.validate(Bigram(), loader(make_rows(3)), verbose=False)
    run.test(Bigram(), loader(make_rows(3)), verbose=False)
    text = terminal.getvalue()
    assert "\rvalidation: batch 3/3\n" in text
    assert "\rtest: batch 3/3\n" in text


def test_a_run_without_end_has_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    class Stops(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 14

    fit(max_epochs=-1, callbacks=[Stops()])
    lines = [row for row in capsys.readouterr().err.splitlines() if row.startswith("step")]
    assert lines[-1].startswith("step 14  epoch 2")
    assert "left" not in lines[-1]


def test_disabled_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TokenProgressBar()
    bar.disable()
    run = trainer(enable_progress_bar=True, callbacks=[bar])
    run.fit(Silent(), loader(make_rows(4)))
    assert "step" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"),
    [(843, "843"), (999.6, "1.00k"), (38_212, "38.2k"), (2_457_600, "2.46M"), (3e13, "30.0T")],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "0:42"), (727, "12:07"), (11_527, "3:12:07"), (90_000, "1d 1:00:00")]
)
def test_clock_times(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_control_characters_of_a_sample_are_pictures() -> None:
    assert printable("a\x1b[2J\r\x00\x7f\x9b31m\tb\n中") == "a␛[2J␍␀␡\ufffd31m\tb\n中"
