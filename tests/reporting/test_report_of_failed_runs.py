"""The page of a run that did not end by itself: how it ended, and that it hides no error."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import RunReport
from lightning_llm.cli import main
from lightning_llm.reporting import Ending, read_run, render_report, write_ending

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HOSTILE = "bad <b>batch</b> & more\nsecond line"


class Stops(BoringModel):
    """Logs a loss; at a given step, what it was given happens."""

    def __init__(self, exception: BaseException | None = None, step: int = 3) -> None:
        super().__init__()
        self.exception, self.failing_step = exception, step

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.exception is not None and batch_idx == self.failing_step:
            raise self.exception
        out = super().training_step(batch, batch_idx)
        self.log("train_loss", out["loss"])
        return out


def fit(folder: Path, module: Any, *callbacks: Callback, version: int | None = None) -> Trainer:
    trainer = Trainer(
        max_steps=6,
        limit_val_batches=0,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=CSVLogger(folder, name=None, version=version),
        callbacks=[RunReport(), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module)
    return trainer


def page_of(folder: Path, version: int = 0) -> str:
    return (folder / f"version_{version}" / "report.html").read_text(encoding="utf-8")


def test_an_error_is_on_the_page_and_still_raised(tmp_path: Path) -> None:
    error = RuntimeError(HOSTILE)
    with pytest.raises(RuntimeError) as raised:
        fit(tmp_path, Stops(error))
    assert raised.value is error
    page = page_of(tmp_path)
    said = "RuntimeError: bad &lt;b&gt;batch&lt;/b&gt; &amp; more"
    assert f'<span class="error">error after 3 steps: {said}</span>' in page
    assert f"<pre>{said}\nsecond line</pre>" in page
    assert "<b>" not in page
    assert "<polyline" in page  # three rows, which the logger had not written yet
    assert len(read_run(tmp_path / "version_0").series["train_loss"]) == 3


def test_an_error_in_the_first_step_has_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="at once"):
        fit(tmp_path, Stops(ValueError("at once"), step=0))
    assert "error after 0 steps: ValueError: at once" in page_of(tmp_path)
    assert "No metrics were logged." in page_of(tmp_path)
    assert main(["report", str(tmp_path)]) == 0  # the command finds it without metrics.csv too
    assert "ValueError: at once" in (tmp_path / "report.html").read_text()


def test_ctrl_c_is_an_interruption(tmp_path: Path) -> None:
    class PressesCtrlC(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as raised:  # Lightning's answer to Ctrl-C
            fit(tmp_path, Stops(), PressesCtrlC())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert raised.value.code == 1
    assert isinstance(raised.value.__context__, KeyboardInterrupt)
    assert '<span class="interrupted">interrupted after 2 steps' in page_of(tmp_path)


def test_a_whole_run_is_finished(tmp_path: Path) -> None:
    fit(tmp_path, Stops())
    assert '<span class="finished">finished after 6 steps</span>' in page_of(tmp_path)
    assert "How it ended" not in page_of(tmp_path)


@pytest.mark.parametrize("filters", ["always", "error"])
def test_a_report_that_fails_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: str
) -> None:
    def fails(*_: Any) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr("lightning_llm.reporting.render_report", fails)
    error = KeyError("original")
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings(filters, message="RunReport")
        with pytest.raises(KeyError) as raised:
            fit(tmp_path, Stops(error))
    assert raised.value is error
    shown = [str(one.message) for one in caught]
    assert filters == "error" or any("wrote no page: RuntimeError: no page" in s for s in shown)
    assert (tmp_path / "version_0" / "ending.json").is_file()


def test_an_error_of_evaluation_alone_leaves_the_page_of_training(tmp_path: Path) -> None:
    class FailsToo(Stops):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            raise ValueError("in test")

    trainer = fit(tmp_path, FailsToo())
    before = page_of(tmp_path)
    with pytest.raises(ValueError, match="in test"):
        trainer.test(FailsToo())
    assert page_of(tmp_path) == before


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    report = RunReport()
    other: Any = SimpleNamespace(is_global_zero=False, loggers=[CSVLogger(tmp_path)])
    report.on_fit_start(other, BoringModel())
    report.on_exception(other, BoringModel(), ValueError("x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("exception", "state", "sentence"),
    [
        (None, "finished", "finished after 1 step"),
        (KeyboardInterrupt(), "interrupted", "interrupted after 1 step: KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "interrupted after 1 step: SystemExit: 143"),
        (OSError(28, "No space"), "error", "error after 1 step: OSError: [Errno 28] No space"),
    ],
)
def test_states(exception: BaseException | None, state: str, sentence: str) -> None:
    ending = Ending.of(exception, 1)
    assert (ending.state, ending.sentence) == (state, sentence)


def test_long_messages_and_broken_records(tmp_path: Path) -> None:
    assert len(Ending.of(ValueError("x" * 10**6), 1).message) < 21_000
    assert len(Ending.of(ValueError("x" * 10**6), 1).sentence) < 400
    for text in ("{", "[]", '{"state": "lost", "step": 1, "message": ""}', '{"state": "error"}'):
        (tmp_path / "ending.json").write_text(text)
        run = read_run(tmp_path)
        assert run.ending is None
        assert "ending.json: left out" in run.problems[0]
    record = {"state": "error", "step": 2, "message": "</pre><script>x</script>"}
    (tmp_path / "ending.json").write_text(json.dumps(record))
    page = render_report([read_run(tmp_path)])
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 2


def test_a_killed_run_has_no_end(tmp_path: Path) -> None:
    fit(tmp_path, Stops())
    (tmp_path / "version_0" / "ending.json").unlink()
    assert "no end recorded" in render_report([read_run(tmp_path / "version_0")])
    (tmp_path / "version_0" / "environment.json").unlink()  # of a run without RunReport
    assert "no end recorded" not in render_report([read_run(tmp_path / "version_0")])


def test_what_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes text only")
    write_ending(folder, Ending.of(OSError(2, "No such file", str(folder)), 1))
    page = render_report([read_run(folder)]).encode()
    assert page.count(rb"run\udcff") >= 2
