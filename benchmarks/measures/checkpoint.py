"""`checkpoint`: seconds that training stands still for a checkpoint."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from benchmarks.contenders.lightning_hf import HuggingFaceModule
from benchmarks.contenders.ours import build_module
from benchmarks.pacing import Pacer
from benchmarks.plan import Pacing, Plan, against
from benchmarks.race import Task
from benchmarks.training import TokenRows, TrainOptions, batches, build_optimizer
from benchmarks.weights import hugging_face_model
from benchmarks.workloads import WORKLOADS

PACE = Pacing(warmup=1, rounds=5, steps=1)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="L")


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Plan the race; the files go to the temporary folder of each worker."""
    options = {"workload": args.workload, "device": args.device}
    options |= {"batch": 1}  # the checkpoint does not depend on it
    tasks = [
        Task(
            label, f"{__name__}:run", {"train": options, "saver": label}, args.device, args.threads
        )
        for label in SAVERS
    ]
    settings = {"name_parts": [args.workload, args.device], "workload": args.workload}
    title = f"Checkpoint of {args.workload}: seconds that training stands still"
    columns = ("seconds", "ratio", "memory")
    pace, baselines = PACE.resolve(args), against("ours", tasks)
    return [Plan("checkpoint", title, "checkpoints/s", tasks, pace, settings, baselines, columns)]


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Make one step, so that the optimizer has its state, then save again and again."""
    SAVERS[options["saver"]](TrainOptions(**options["train"]), pacer)


class _Saving(L.Callback):
    """Saves within the first step, as a checkpoint callback does."""

    def __init__(self, pacer: Pacer, settled: Callable[[], None]) -> None:
        self.pacer, self.settled = pacer, settled

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        for _ in range(self.pacer.total_steps):
            trainer.save_checkpoint("run.ckpt")
            with self.pacer.paused():  # the next save would wait, training does not
                self.settled()
            self.pacer.step_done()


def _fit(
    module: L.LightningModule,
    options: TrainOptions,
    pacer: Pacer,
    plugins: list[Any],
    settled: Callable[[], None] = lambda: None,
) -> None:
    trainer = L.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        plugins=plugins,
        callbacks=[_Saving(pacer, settled)],
    )
    fields = ("input_ids", "labels")
    trainer.fit(module, torch.utils.data.DataLoader(TokenRows(options, 1, fields), batch_size=1))


def _ours(options: TrainOptions, pacer: Pacer) -> None:
    """Forced to the disk and renamed: after a power cut there is a whole checkpoint."""
    from lightning_llm.plugins import AtomicCheckpointIO

    _fit(build_module(options), options, pacer, [AtomicCheckpointIO()])


def _ours_asynchronous(options: TrainOptions, pacer: Pacer) -> None:
    from lightning_llm.plugins import AtomicCheckpointIO

    plugin = AtomicCheckpointIO(asynchronous=True)
    _fit(build_module(options), options, pacer, [plugin], plugin.teardown)


def _lightning(options: TrainOptions, pacer: Pacer) -> None:
    """Lightning's default: written, not forced to the disk."""
    _fit(HuggingFaceModule(options), options, pacer, [])


def _torch_save(options: TrainOptions, pacer: Pacer) -> None:
    """`torch.save` in a bare loop: written, not forced to the disk."""
    model = hugging_face_model(options).to(options.device)
    optimizer = build_optimizer(model, options)
    inputs, _ = next(batches(options, 1))
    model(input_ids=inputs, labels=inputs).loss.backward()
    optimizer.step()
    for _ in range(pacer.total_steps):
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, "run.ckpt")
        pacer.step_done()


SAVERS: dict[str, Callable[[TrainOptions, Pacer], None]] = {
    "ours": _ours,
    "ours_asynchronous": _ours_asynchronous,
    "lightning": _lightning,
    "torch_save": _torch_save,
}
