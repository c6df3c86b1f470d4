"""A rank of a run that a signal ends: prints its steps, and what it had in the end."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from lightning_llm.callbacks import Preemption, RandomState
from lightning_llm.data import TokenStore, TokenStoreWriter
from lightning_llm.data.loader import TokenLoader
from lightning_llm.data.packing import ConcatWindows
from lightning_llm.plugins import AtomicCheckpointIO
from lightning_llm.strategies import FSDP2Strategy
from runs import Net, trainer

ROWS = 44


class Data(pl.LightningDataModule):
    def __init__(self, folder: Path, workers: int = 0) -> None:
        super().__init__()
        self.folder, self.workers = folder, workers

    def prepare_data(self) -> None:
        if not (self.folder / "store").exists():
            with TokenStoreWriter(self.folder / "store", vocab_size=256) as writer:
                writer.add(np.arange(2 * ROWS + 1) % 256)

    def train_dataloader(self) -> TokenLoader:
        return TokenLoader(
            ConcatWindows(TokenStore(self.folder / "store"), 2),
            micro_batch_size=2,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            shuffle=True,
            seed=5,
            num_workers=self.workers,
            trainer=self.trainer,
        )


class Dropout(Net):
    """Dropout, and numbers of every generator in the loss."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        real = (batch["shift_labels"] != -100).any(1)
        x = torch.cat((batch["input_ids"], batch["shift_labels"]), 1).float() / 256
        noise = float(np.random.rand()) + torch.rand(())
        loss = (self.layers(x).square().mean(1) * real).sum() * (1 + noise)
        self.losses.append(float(loss.detach()))
        return loss


class Pace(pl.Callback):
    """Slow steps, told one by one, so that a signal meets the run in the middle."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        print(f"batch {trainer.fit_loop.total_batch_idx}", flush=True)
        time.sleep(0.05)


def run(folder: Path, *, ckpt: Path | None = None, callbacks: Any = (), **options: Any) -> Dropout:
    module = Dropout()
    workers = options.pop("workers", 0)
    pl.seed_everything(9 if ckpt is None else 10, verbose=False)
    trainer(
        plugins=[AtomicCheckpointIO()],
        callbacks=[RandomState(), *callbacks],
        default_root_dir=folder,
        **{"max_epochs": 3} | options,
    ).fit(module, datamodule=Data(folder, workers), ckpt_path=ckpt)
    return module


if __name__ == "__main__":
    options: dict[str, Any] = {"accumulate_grad_batches": int(sys.argv[2]), "max_epochs": 400}
    if sys.argv[3] != "alone":
        sharded = FSDP2Strategy(block_class="Linear")
        options |= {"devices": 2, "strategy": sharded if sys.argv[3] == "sharded" else "ddp"}
    options["workers"] = int("".join(sys.argv[4:]) or 0)
    run(Path(sys.argv[1]), callbacks=[Preemption(), Pace()], **options)
