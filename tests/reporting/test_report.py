"""The page of a run: what it shows, what it leaves out, what it escapes."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import RunReport
from lightning_llm.cli import main
from lightning_llm.reporting import read_run, read_runs, render_report

HOSTILE = "</pre><script>alert(1)</script>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


def write_run(directory: Path, scale: float = 1.0) -> Path:
    directory.mkdir(parents=True)
    rows = ["step,tokens_seen,step_seconds,train_loss,val_loss,peak_memory_gib"]
    rows += [f"{s},{s * 100},30,{scale * 5 / (s + 1)},,2.5" for s in range(10)]
    rows += ["5,,,,1.5,", "broken,row", "9,,,nan,,"]
    (directory / "metrics.csv").write_text("\n".join(rows) + "\n")
    sample = {"step": 3, "epoch": 0, "prompt": "Once", "text": HOSTILE}
    (directory / "samples.jsonl").write_text(json.dumps(sample) + "\n{half\n")
    (directory / "config.yaml").write_text(f"# {HOSTILE}\nseed: 1\n")
    return directory


def test_columns_move_to_tokens_and_minutes(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a"))
    assert run.over_tokens("val_loss") == [(500.0, 1.5)]
    assert run.over_minutes("peak_memory_gib")[1] == (1.0, 2.5)  # two steps of 30 s
    assert len(run.series["train_loss"]) == 10  # nan is no point


def test_broken_rows_are_named(tmp_path: Path) -> None:
    problems = read_run(write_run(tmp_path / "a")).problems
    assert "metrics.csv, line 13" in problems[0]
    assert "samples.jsonl, line 2" in problems[1]


def test_texts_are_escaped_and_charts_are_valid(tmp_path: Path) -> None:
    page = render_report([read_run(write_run(tmp_path / HOSTILE.replace("/", "")))])
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in page
    assert "http" not in page
    charts = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in page.split("<svg")[1:]]
    assert len(charts) == 4  # loss and memory, over tokens and over minutes
    for chart in charts:
        assert ET.fromstring(chart).tag == "svg"


def test_command_compares_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 2.0)]
    output = tmp_path / "out" / "page.html"
    assert main(["report", *map(str, runs), "--output", str(output)]) == 0
    page = output.read_text()
    assert 'class="line c0"' in page
    assert 'class="line c1"' in page
    assert "line 13" in capsys.readouterr().err


def test_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    assert main(["report", str(tmp_path / "logs")]) == 1
    assert "has no metrics.csv, which CSVLogger writes" in capsys.readouterr().err
    write_run(tmp_path / "logs" / "version_0")
    assert main(["report", str(tmp_path / "logs")]) == 0  # the only run below it
    assert (tmp_path / "logs" / "report.html").is_file()
    later = write_run(tmp_path / "logs" / "version_1") / "metrics.csv"
    os.utime(later, (2_000_000_000, 2_000_000_000))
    evaluated = tmp_path / "logs" / "version_2" / "metrics.csv"
    evaluated.parent.mkdir()
    evaluated.write_text("epoch,step,val_loss,val_perplexity\n0,20,2.0,\n0,20,,7.4\n")
    os.utime(evaluated, (2_000_000_009, 2_000_000_009))
    capsys.readouterr()
    assert main(["report", str(tmp_path / "logs")]) == 0  # the newest that trained
    assert f"{tmp_path / 'logs'}: the run is " in (said := capsys.readouterr().err)
    assert "version_1\n" in said


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    ends = ("a/run/logs/version_0", "b/run/logs/version_0")
    runs = read_runs([write_run(tmp_path / end) for end in ends])
    assert [run.name for run in runs] == list(ends)


def test_recipes_of_compared_runs(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name) for name in ("a", "b")]
    assert "<p>Nothing.</p>" in render_report(read_runs(paths))
    (paths[1] / "config.yaml").write_text(f"# {HOSTILE}\nseed: 2\n")
    page = render_report(read_runs(paths))
    assert "\n-seed: 1\n+seed: 2</pre>" in page
    assert page.count("what differs from") == 1


class Logged(BoringModel):
    def training_step(self, batch: object, batch_idx: int) -> object:
        out = super().training_step(batch, batch_idx)
        self.log("train_loss", out["loss"])
        return out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_callback_writes_the_page(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    Trainer(
        max_steps=4,
        log_every_n_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=logger,
        callbacks=[RunReport()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Logged())
    page = (Path(logger.log_dir) / "report.html").read_text()
    assert "<polyline" in page
    assert "Hardware and versions" in page
