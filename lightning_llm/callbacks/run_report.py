"""A page of pictures of the run, beside its log."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from pathlib import Path

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_llm._version import __version__
from lightning_llm.callbacks._precision_name import precision_name


class RunReport(Callback):
    """Writes ``environment.json`` at the start and ``report.html`` at the end of ``fit``.

    The page comes however the run ends: by itself, by Ctrl-C or a signal, or by an exception, whose
    message it shows. ``ending.json`` keeps that beside it.

    All go to the directory of the trainer's ``CSVLogger``, whose ``metrics.csv`` the page is drawn
    from; without one, the callback warns and does nothing. Rank zero writes. A page that cannot be
    written is only warned of. ``lightning-llm report RUN_DIR`` draws the same page at any time.

    Args:
        png: Write each chart as a picture too, to the folder ``png`` beside the page.

    Raises:
        ModuleNotFoundError: ``png=True``, and Pillow is not installed.
    """

    def __init__(self, *, png: bool = False) -> None:
        super().__init__()
        self.png = png
        self._directory: Path | None = None  # of the run under way, on rank zero
        if png:  # now and not after the run
            from lightning_llm.reporting.png import check_pillow

            check_pillow()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._directory = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        directory = _directory(trainer)
        if directory is None:
            rank_zero_warn("RunReport draws from CSVLogger's metrics.csv: add CSVLogger to logger=")
            return
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_facts(trainer), indent=2) + "\n"
            (directory / "environment.json").write_text(text, encoding="utf-8")
            (directory / "ending.json").unlink(missing_ok=True)  # of a run in the same directory
        except OSError as error:
            rank_zero_warn(f"RunReport cannot write to {directory}: {error}")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, None)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # What ended the run must be what the user sees: even a warning that was made an error
        # stays behind it.
        with suppress(Warning):
            self._write(trainer, exception)

    def _write(self, trainer: Trainer, exception: BaseException | None) -> None:
        directory = self._directory
        if directory is None:
            return
        try:
            # Not imported before it is needed: the callbacks alone stay light.
            from lightning_llm.reporting import (
                Ending,
                read_run,
                render_report,
                write_ending,
                write_pngs,
            )

            for logger in trainer.loggers:
                logger.save()  # the rows since the last flush
            write_ending(directory, Ending.of(exception, trainer.global_step))
            run = read_run(directory)
            (directory / "report.html").write_text(render_report([run]), encoding="utf-8")
            if self.png:
                write_pngs([run], directory / "png")
        except Exception as error:  # of a logger, a full disk or a strange text: no reason to fail
            rank_zero_warn(f"RunReport wrote no page: {type(error).__name__}: {error}")
            return
        rank_zero_info(f"Report: {directory / 'report.html'}")


def _facts(trainer: Trainer) -> dict[str, str | None]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "devices": f"{trainer.world_size} x {name}",
        "precision": precision_name(trainer),
        "strategy": type(trainer.strategy).__name__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "lightning": lightning.__version__,
        "lightning_llm": __version__,
    }


def _directory(trainer: Trainer) -> Path | None:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return Path(loggers[0].log_dir) if loggers else None
