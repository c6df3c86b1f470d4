"""A rank of a run in which one rank stops at its third batch, for good or by a stop signal."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import lightning.pytorch as pl

from lightning_llm.callbacks import StallGuard
from runs import Net, batches, loader, trainer


class Hang(pl.Callback):
    """Sleeps where others train; the other ranks wait for its gradients."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        print(f"batch {index}", flush=True)
        if index == 3 and trainer.global_rank == int(sys.argv[1]):
            time.sleep(600)


if __name__ == "__main__":
    trainer(
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp",
        callbacks=[Hang(), StallGuard(timeout=4.0, first_timeout=120.0)],
        use_distributed_sampler=False,
    ).fit(Net(), loader(batches(50)))
