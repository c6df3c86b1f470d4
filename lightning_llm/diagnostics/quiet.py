"""Leaves out of a trainer what a run would write, and nothing of what costs time in a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import Profiler

from lightning_llm.callbacks import HFExport, RunReport, SampleText, SaveAtEnd

# What writes files, and what could end the run before the last measured step.
_LEFT_OUT = (Checkpoint, HFExport, RunReport, SampleText, SaveAtEnd, EarlyStopping, Timer)


@contextmanager
def quiet(trainer: L.Trainer, guest: L.Callback, profiler: Profiler) -> Iterator[None]:
    """Let a trainer fit without checkpoints, logs and validation, with a guest among its callbacks.

    Everything is put back at the end. Loggers are replaced by one that drops what it is given, so
    that collecting the values still takes its time.
    """
    run: Any = trainer  # attributes that its class does not declare
    kept = {
        "callbacks": run.callbacks,
        "loggers": run.loggers,
        "profiler": run.profiler,
        "_default_root_dir": run._default_root_dir,
        "limit_val_batches": run.limit_val_batches,
        "num_sanity_val_steps": run.num_sanity_val_steps,
    }
    working = [callback for callback in run.callbacks if not isinstance(callback, _LEFT_OUT)]
    with TemporaryDirectory(prefix="doctor-") as folder:
        run.callbacks = [guest, *working]
        run.loggers = [DummyLogger()] if run.loggers else []
        run.profiler = profiler
        run._default_root_dir = folder
        run.limit_val_batches = run.num_sanity_val_steps = 0
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(run, name, value)
