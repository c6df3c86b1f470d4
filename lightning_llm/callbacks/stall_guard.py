"""`StallGuard`: end a run of several ranks in which nothing happens any more, and say why."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Any

import lightning.pytorch as L
from typing_extensions import override

from lightning_llm.errors import InvalidValueError

_STATUS = 1
_FIRST_BATCHES = 2  # in which blocks are compiled and ranks find each other


class StallGuard(L.Callback):
    """End every rank when none has finished a batch for too long.

    A rank that hangs, or dies where the others cannot see it, leaves the others waiting inside a
    collective operation, which by default gives up after half an hour. Here each rank has a thread
    that looks at the time of its last batch. When that is too long ago, the rank says so with the
    stack of each of its threads, stops the processes it started, and leaves with status 1.

    Training, validation, testing and prediction count, and so does a checkpoint that was written.
    With a single rank nothing is watched: nobody waits for it.

    Args:
        timeout: Seconds without a batch after which the run ends. Longer than the longest thing
            that happens between two batches: a checkpoint, the generation of samples.
        first_timeout: The same until two batches have been finished. Default: three times
            ``timeout``, at least half an hour.

    Raises:
        ValueError: A timeout is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[StallGuard(timeout=120)])
    """

    def __init__(self, timeout: float = 600.0, first_timeout: float | None = None) -> None:
        for name, value in (("timeout", timeout), ("first_timeout", first_timeout)):
            if value is not None and not value > 0:
                raise InvalidValueError(
                    f"StallGuard: {name}={value} must be a positive number of seconds"
                )
        self.timeout = timeout
        self.first_timeout = max(1800.0, 3 * timeout) if first_timeout is None else first_timeout
        self._last, self._batches, self._where = 0.0, 0, "the start"
        self._done: threading.Event | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start to watch."""
        self._stop()
        if trainer.world_size == 1:
            return
        self._last, self._batches, self._where = time.monotonic(), 0, f"the start of {stage}"
        self._done = threading.Event()
        threading.Thread(
            target=self._watch, args=(trainer, self._done), name="StallGuard", daemon=True
        ).start()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch no more."""
        self._stop()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Watch no more: the run ends by itself."""
        self._stop()

    def _stop(self) -> None:
        if self._done is not None:
            self._done.set()
            self._done = None

    def _beat(self, where: str, batch_idx: int) -> None:
        self._last, self._where = time.monotonic(), f"{where} batch {batch_idx}"
        self._batches += 1

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the time."""
        self._beat("training", batch_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the time."""
        self._beat("validation", batch_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the time."""
        self._beat("test", batch_idx)

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the time."""
        self._beat("prediction", batch_idx)

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the time."""
        self._last = time.monotonic()

    def _watch(self, trainer: L.Trainer, done: threading.Event) -> None:
        while True:
            limit = self.timeout if self._batches >= _FIRST_BATCHES else self.first_timeout
            left = self._last + limit - time.monotonic()
            if left <= 0:
                _end(trainer, f"nothing has happened for {limit:g} s, since {self._where}")
            if done.wait(min(left, self.timeout / 4)):
                return


def _end(trainer: L.Trainer, reason: str) -> None:
    """Say why, show where each thread is, and leave; a clean end would wait for the others."""
    recorder = os.environ.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    files = f" NCCL's flight recorder writes to {recorder}<rank>." if recorder else ""
    sys.stderr.write(
        f"StallGuard, rank {trainer.global_rank} of {trainer.world_size}: {reason}. A rank hangs "
        f"or is gone, or this one waits for data; the last checkpoint is good.{files} Threads of "
        f"this rank:\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)
    launcher: Any = trainer.strategy.launcher
    if hasattr(launcher, "kill"):
        launcher.kill(signal.SIGKILL)
    os._exit(_STATUS)
