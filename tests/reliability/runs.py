"""A small module with dropout, its trainer, and what ranks are started with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from ranks import free_port, torchrun
from torch import nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[2]


class Net(pl.LightningModule):
    """Regression with dropout; remembers every loss."""

    def __init__(self, optimizer: Any = None, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.make_optimizer = optimizer or (lambda p: torch.optim.AdamW(p, lr=0.01))
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.layers(batch).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def trainer(**options: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 1,
    }
    return pl.Trainer(**quiet | options)


def batches(count: int, rows: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(rows, 4, generator=generator) for _ in range(count)]


def loader(data: list[torch.Tensor]) -> DataLoader[torch.Tensor]:
    return DataLoader(data, batch_size=None)  # type: ignore[arg-type]


def start_ranks(
    script: str,
    world_size: int,
    *arguments: str,
    launcher: Callable[[int, int, int], dict[str, str]] = torchrun,
) -> list[subprocess.Popen[str]]:
    """Start a script of this folder once per rank, as a launcher would (gloo)."""
    port = free_port()
    processes = []
    for rank in range(world_size):
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'strategies'}",
            "OMP_NUM_THREADS": "1",
        }
        if world_size > 1:
            environment |= launcher(rank, world_size, port)
        command = [sys.executable, "-u", str(Path(__file__).with_name(script)), *arguments]
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    return processes
