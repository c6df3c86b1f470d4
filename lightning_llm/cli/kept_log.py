"""Keeps what a ``CSVLogger`` wrote before, where a command logs into the same folder again.

With a fixed ``version`` the folder is that of the earlier start, and Lightning's logger deletes its
``metrics.csv``: at every resume, and also when the model is only evaluated.
"""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override

from lightning_llm.runtime.lightning_api import steps_logged


def keep_rows(trainer: L.Trainer) -> None:
    """Open the trainer's CSV logs so that new rows follow those that are there."""
    if not trainer.is_global_zero:
        return
    for logger in _csv_loggers(trainer):
        file = Path(logger.log_dir, "metrics.csv")
        if not file.is_file():
            continue
        header, rows = _read(file)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory .* is not empty")
            writer: Any = logger.experiment  # deletes the file
        writer.metrics_keys = header
        _write(file, header, rows)


class LogOfRun(L.Callback):
    """Removes the rows and samples of steps that a resumed run takes again."""

    def __init__(self) -> None:
        self._continues = False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note whether a checkpoint was loaded."""
        self._continues = trainer.ckpt_path is not None

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch: by now the trainer knows where it goes on."""
        if not self._continues:
            return
        self._continues = False
        if trainer.is_global_zero:
            for logger in _csv_loggers(trainer):
                _drop_from(Path(logger.log_dir), steps_logged(trainer), trainer.global_step)


def _csv_loggers(trainer: L.Trainer) -> Iterable[CSVLogger]:
    return (
        logger
        for logger in trainer.loggers
        if isinstance(logger, CSVLogger) and "://" not in str(logger.save_dir)
    )


def _drop_from(folder: Path, first: int, step: int) -> None:
    """Remove the rows that are logged from ``first`` on, and samples of steps after ``step``."""
    file = folder / "metrics.csv"
    if file.is_file():
        header, rows = _read(file)
        kept = [row for row in rows if _is_before(row.get("step"), first)]
        if len(kept) < len(rows):
            _write(file, header, kept)
    for path in folder.glob("*samples.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        samples = [line for line in lines if _step_of(line) <= step]
        if len(samples) < len(lines):
            _replace(path, "".join(samples))


def _is_before(step: str | None, first: int) -> bool:
    try:
        return float(step or "nan") < first
    except ValueError:
        return False


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1  # not ours to judge


def _read(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    with file.open(encoding="utf-8", errors="replace", newline="") as opened:
        reader = csv.DictReader(line.replace("\0", "") for line in opened)
        header = list(reader.fieldnames or [])
        # A process that was killed may have left half a row.
        rows = [row for row in reader if None not in row and None not in row.values()]
    return header, rows


def _write(file: Path, header: list[str], rows: list[dict[str, str]]) -> None:
    if not header:
        return
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=header)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, file)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
