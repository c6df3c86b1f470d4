"""What arrives in each logger: scalars by their promised names, texts through its own API."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_llm.callbacks import PerplexityMonitor, SampleText, SpeedMonitor

SCALARS = {
    "val_loss",
    "val_perplexity",
    "tokens_per_second",
    "tokens_seen",
    "step_seconds",
    "data_wait_fraction",
}
TEXT = "once upon a time"


class Writer(Bigram):
    def generate(self, prompts: list[str]) -> list[str]:
        return [" upon a time" for _ in prompts]


class Recording(Logger):
    """A logger that keeps the names of its scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars: set[str] = set()

    name = version = "recording"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.scalars |= set(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


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
