"""`overhead`: what a step costs beside its arithmetic, on a model of one weight."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from benchmarks.contenders.lightning_trainer import Pacing as PacingCallback
from benchmarks.pacing import Pacer
from benchmarks.plan import Pacing, Plan, against
from benchmarks.race import Task

PACE = Pacing(200, 7, 400, settle=20, quick={"warmup": 2, "rounds": 2, "steps": 2, "settle": 1})


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options: there are none beyond the common ones."""


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Plan the race."""
    tasks = [
        Task(label, f"{__name__}:run", {"loop": label, "device": args.device}, args.device, 1)
        for label in LOOPS
    ]
    settings = {"name_parts": [args.device], "optimizer": "AdamW foreach"}
    title, columns = "Overhead of a step: a model of one weight", ("milliseconds", "cpu", "ratio")
    pace, baselines = PACE.resolve(args), against("ours", tasks)
    return [Plan("overhead", title, "steps/s", tasks, pace, settings, baselines, columns)]


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train the one weight."""
    LOOPS[options["loop"]](options["device"], pacer)


class Repeated:
    """The same batch, ``count`` times: a loader that costs nothing."""

    def __init__(self, batch: Any, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.count):
            yield self.batch


def _batch() -> dict[str, Tensor]:
    return {
        "input_ids": torch.zeros(1, 1, dtype=torch.long),
        "shift_labels": torch.zeros(1, 1, dtype=torch.long),
    }


def _bare(device: str, pacer: Pacer) -> None:
    weight = torch.nn.Parameter(torch.ones(1, device=device))
    optimizer = torch.optim.AdamW([weight], foreach=True)
    batch = _batch()
    for _ in range(pacer.total_steps):
        for tensor in batch.values():
            tensor.to(device, non_blocking=True)
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pacer.step_done()


class OneWeight(L.LightningModule):
    """A plain module; ``log`` logs the loss in every step, as most examples do."""

    def __init__(self, log: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.logs = log

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss."""
        loss = self.weight.square().sum()
        if self.logs:
            self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the one weight."""
        return torch.optim.AdamW(self.parameters(), foreach=True)


def _fit(module: L.LightningModule, device: str, pacer: Pacer, **arguments: Any) -> None:
    callbacks = [*arguments.pop("callbacks", []), PacingCallback(pacer)]
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_steps=pacer.total_steps,
        callbacks=callbacks,
        **arguments,
    )
    trainer.fit(module, Repeated(_batch(), pacer.total_steps))


def _all_off(device: str, pacer: Pacer) -> None:
    _fit(
        OneWeight(log=False),
        device,
        pacer,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _defaults(device: str, pacer: Pacer) -> None:
    _fit(OneWeight(log=True), device, pacer, logger=CSVLogger("logs"))


def _logging_each_step(device: str, pacer: Pacer) -> None:
    _fit(OneWeight(log=True), device, pacer, logger=CSVLogger("logs"), log_every_n_steps=1)


def _ours(device: str, pacer: Pacer) -> None:
    """Our steps and callbacks, with progress bar, logger and checkpoint callback."""
    from lightning_llm.callbacks import GarbageCollection, SpeedMonitor, TokenProgressBar
    from lightning_llm.steps import TokenLossModule

    class OneWeightTokens(TokenLossModule):
        """The same weight in the steps of `CausalLM`."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            return self.weight.square().sum(), (batch["shift_labels"] != -100).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), foreach=True)

    callbacks = [SpeedMonitor(), GarbageCollection(), TokenProgressBar()]
    _fit(OneWeightTokens(), device, pacer, logger=CSVLogger("logs"), callbacks=callbacks)


LOOPS: dict[str, Callable[[str, Pacer], None]] = {
    "ours": _ours,
    "bare_loop": _bare,
    "lightning_all_off": _all_off,
    "lightning_defaults": _defaults,
    "lightning_logging_each_step": _logging_each_step,
}
