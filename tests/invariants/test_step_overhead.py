"""What module, callbacks and progress bar of this package do in a step, counted, not timed."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_llm
from lightning_llm.callbacks import GarbageCollection, SpeedMonitor, TokenProgressBar
from lightning_llm.steps import TokenLossModule

PACKAGE = str(Path(lightning_llm.__file__).parent)
STEPS, LOG_EVERY = 400, 50


class OneWeight(TokenLossModule):
    """Its loss takes two operators to compute: square and sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.count = torch.tensor(4)

    def compute_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self.weight.square().sum(), self.count

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Repeated:
    def __init__(self, count: int) -> None:
        ids = torch.zeros(1, 4, dtype=torch.long)
        self.batches = [{"input_ids": ids, "shift_labels": ids}] * count

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class PerStep(L.Callback):
    """Operators of each step; the first callback."""

    def __init__(self, operators: Operators) -> None:
        self.operators = operators
        self.by_step: list[list[str]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.by_step.append(list(self.operators.names))
        self.operators.names.clear()


def fit(folder: Path, steps: int, *first: L.Callback) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        log_every_n_steps=LOG_EVERY,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[*first, SpeedMonitor(), GarbageCollection(), TokenProgressBar()],
    )
    trainer.fit(OneWeight(), Repeated(steps))


def test_few_calls_of_our_own(tmp_path: Path) -> None:
    profile = cProfile.Profile()
    profile.runcall(fit, tmp_path, STEPS)
    stats = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    calls = {key: entry[1] for key, entry in stats if key[0].startswith(PACKAGE)}
    of_hooks = {"__setattr__", "profile"}  # what makes the Trainer's own calls cheap
    ours = sum(count for key, count in calls.items() if key[2] not in of_hooks)
    assert ours / STEPS < 50, sorted(calls.items(), key=lambda item: -item[1])[:20]


def test_few_operators_between_log_points(tmp_path: Path) -> None:
    operators = Operators()
    steps = PerStep(operators)
    with operators:
        fit(tmp_path, LOG_EVERY, steps)
    between = steps.by_step[5]
    assert "aten::sum" in between
    assert all(len(names) == len(between) for names in steps.by_step[4:9])
    assert len(between) < 26, between  # backward and optimizer included
