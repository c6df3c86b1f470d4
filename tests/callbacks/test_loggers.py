"""What arrives in each logger: scalars by their promised names, texts through its own API."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from translating import Translator, answer, corpus_loader, make_corpus

from lightning_llm.callbacks import BLEUMonitor, PerplexityMonitor, SampleText, SpeedMonitor

SCALARS = {
    "val_loss",
    "val_perplexity",
    "tokens_per_second",
    "tokens_seen",
    "step_seconds",
    "data_wait_fraction",
}
TEXT = "once upon a time"
CORPUS = make_corpus(4)
# source, reference, output of the first two
TABLE = [[row["prompt"], row["references"][0], answer(row["prompt"])] for row in CORPUS[:2]]


class Writer(Bigram):
    def generate(self, prompts: list[str]) -> list[str]:
        return [" upon a time" for _ in prompts]


class Recording(Logger):
    """A logger that keeps the names of its scalars, and the hyperparameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars: set[str] = set()
        self.facts: dict[str, Any] = {}

    name = version = "recording"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.scalars |= set(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.facts |= params


class LikeWandb(Recording):
    """Has WandbLogger's ``log_text``, which makes a table of its columns and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[dict[str, Any]] = []

    def log_text(self, key: str, **table: Any) -> None:
        self.tables.append({"key": key, **table})


class LikeMlflow(Recording):
    """Has MLFlowLogger's ``run_id`` and a client with ``log_text(run_id, text, file)``."""

    run_id = "r1"

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, str] = {}
        self.experiment = SimpleNamespace(log_text=self._log_text)

    def _log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        assert run_id == self.run_id
        self.files[artifact_file] = text


def fit(logger: Logger) -> None:
    callbacks = [PerplexityMonitor(), SpeedMonitor(), SampleText(["once"])]
    run = trainer(logger=logger, callbacks=callbacks)
    run.fit(Writer(), loader(make_rows(8)), loader(make_rows(4)))


def translate(logger: Logger) -> None:
    run = trainer(logger=logger, callbacks=[BLEUMonitor(num_logged_samples=2)])
    run.fit(Translator(), corpus_loader(CORPUS), corpus_loader(CORPUS))
    assert run.global_step == 2


def test_csv(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(logger)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    filled = {name for row in rows for name, value in row.items() if value}
    assert filled >= SCALARS


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard package is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    (sample,) = events.Tensors("samples/0/text_summary")
    assert TEXT in sample.tensor_proto.string_val[0].decode()
    assert sample.step == 8


def test_weights_and_biases() -> None:
    logger = LikeWandb()
    fit(logger)
    assert logger.scalars >= SCALARS
    (table,) = logger.tables
    assert table["key"] == "samples"
    assert table["columns"] == ["step", "prompt", "text"]
    assert table["data"] == [[8, "once", " upon a time"]]


def test_mlflow() -> None:
    logger = LikeMlflow()
    fit(logger)
    assert logger.scalars >= SCALARS
    assert logger.files == {"samples/step=8.txt": TEXT}


def test_bleu_samples_beside_csv(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    translate(logger)
    folder = Path(logger.log_dir)
    rows = [json.loads(line) for line in (folder / "bleu_samples.jsonl").read_text().splitlines()]
    names = ["source", "reference", "output"]
    assert [[row[name] for name in names] for row in rows] == TABLE
    assert [row["step"] for row in rows] == [2, 2]
    header, *_ = (folder / "metrics.csv").read_text().splitlines()
    assert {"val_bleu", "val_chrf"} <= set(header.split(","))


def test_bleu_samples_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard package is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    translate(logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"val_bleu", "val_chrf"} <= set(events.Tags()["scalars"])
    (table,) = events.Tensors("val_bleu_samples/text_summary")
    assert table.step == 2
    shown = table.tensor_proto.string_val[0].decode()
    blocks = [f"    source: {s}\n    reference: {r}\n    output: {o}" for s, r, o in TABLE]
    assert shown == "\n    \n".join(blocks)
    (signature,) = events.Tensors("val_bleu_signature/text_summary")
    assert "tok:13a" in signature.tensor_proto.string_val[0].decode()


def test_bleu_samples_in_weights_and_biases() -> None:
    logger = LikeWandb()
    translate(logger)
    assert logger.scalars >= {"val_bleu", "val_chrf"}
    columns = ["step", "source", "reference", "output"]
    data = [[2, *row] for row in TABLE]
    assert logger.tables == [
        {"key": "val_bleu_samples", "columns": columns, "data": data, "step": 2}
    ]
    assert "tok:13a" in logger.facts["val_bleu_signature"]


def test_bleu_samples_in_mlflow() -> None:
    logger = LikeMlflow()
    translate(logger)
    assert logger.scalars >= {"val_bleu", "val_chrf"}
    blocks = [f"source: {s}\nreference: {r}\noutput: {o}" for s, r, o in TABLE]
    assert logger.files == {"val_bleu_samples/step=2.txt": "\n\n".join(blocks)}
    assert "tok:13a" in logger.facts["val_bleu_signature"]
