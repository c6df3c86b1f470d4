"""`ladder`: what each technique brings, alone and on top of the ones before it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from benchmarks.contenders.lightning_trainer import Pacing as PacingCallback
from benchmarks.pacing import Pacer
from benchmarks.plan import Pacing, Plan, against
from benchmarks.race import Task
from benchmarks.training import CLIP_NORM
from benchmarks.workloads import WORKLOADS, Workload

PACE = Pacing(warmup=3, rounds=5, steps=3)
BASE, ALL = "base", "all"
# In the order in which they are stacked, with what is there without them.
RUNGS = {
    "packing": "whole documents side by side instead of one document a row with padding",
    "bf16": "bfloat16 products instead of float32",
    "compile": "compiled blocks instead of eager ones",
    "chunked_loss": "logits chunk by chunk instead of all at once",
    "fused_optimizer": "one fused AdamW instead of torch's default",
    "sparse_logging": "device read every 50 steps instead of every step",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="M")
    parser.add_argument("--batch", type=int, help="rows of a step")
    parser.add_argument(
        "--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), help="techniques, in order"
    )


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Write documents of random tokens, then plan the race."""
    work = WORKLOADS[args.workload]
    default_batch = work.batch_cuda if args.device == "cuda" else work.batch
    batch = args.batch or default_batch
    write_documents(folder / "store", work, rows=batch * 400)
    options = {"workload": args.workload, "batch": batch, "device": args.device}
    options |= {"store": str(folder / "store")}
    tasks = [
        Task(
            label,
            f"{__name__}:run",
            {**options, "techniques": techniques},
            args.device,
            args.threads,
        )
        for label, techniques in steps_of(args.rungs).items()
    ]
    settings = {
        "name_parts": [args.workload, args.device, args.allocator],
        "workload": args.workload,
        "batch": batch,
        "techniques": {name: RUNGS[name] for name in args.rungs},
    }
    title = f"Speed ladder on {args.workload}: {work.about}, batch {batch}"
    pace, baselines = PACE.resolve(args), against(BASE, tasks)
    columns = ("rate", "gain", "memory")
    unit = "tokens of text/s"
    return [Plan("ladder", title, unit, tasks, pace, settings, baselines, columns)]


def steps_of(rungs: list[str]) -> dict[str, list[str]]:
    """Return label -> techniques: none, each alone, and the growing stack."""
    alone = {f"{name} alone": [name] for name in rungs}
    stacked = {f"+ {name}": rungs[: place + 1] for place, name in enumerate(rungs) if place}
    return {BASE: [], **alone, **stacked}


def write_documents(path: Path, work: Workload, rows: int) -> None:
    """Documents of log-normal length, a third of a row on average, as instruction data has them."""
    from lightning_llm.data import TokenStoreWriter

    random = np.random.default_rng(1)
    lengths = random.lognormal(np.log(work.seq_len / 4), 0.8, size=rows)
    vocab = work.model["vocab_size"]
    with TokenStoreWriter(path, vocab_size=vocab) as writer:
        for length in np.clip(lengths, 4, work.seq_len).astype(int):
            writer.add(random.integers(0, vocab, size=length))


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train with some of the techniques."""
    from benchmarks.contenders.ours import WholeLogitsLM
    from lightning_llm import CausalLM
    from lightning_llm.data import TokenStore
    from lightning_llm.data.loader import TokenLoader
    from lightning_llm.data.packing import PackedDocuments
    from lightning_llm.models import TransformerConfig

    work, on = WORKLOADS[options["workload"]], set(options["techniques"])
    rows = PackedDocuments(
        TokenStore(options["store"]), work.seq_len, one_per_row="packing" not in on
    )
    loader = TokenLoader(
        rows,
        micro_batch_size=options["batch"],
        shuffle=True,
        drop_last=True,
        pin_memory=options["device"] == "cuda",
    )
    pacer.units_per_step = options["batch"] * work.seq_len * rows.fill_fraction
    torch.manual_seed(1)
    module = (CausalLM if "chunked_loss" in on else WholeLogitsLM)(
        TransformerConfig(**work.model), optimizer=_optimizer(fused="fused_optimizer" in on)
    )
    Trainer(
        accelerator="gpu" if options["device"] == "cuda" else "cpu",
        devices=1,
        max_steps=pacer.total_steps,
        gradient_clip_val=CLIP_NORM,
        logger=CSVLogger("logs"),
        log_every_n_steps=50 if "sparse_logging" in on else 1,
        enable_checkpointing=False,
        callbacks=[PacingCallback(pacer)],
        **_acceleration(on),
    ).fit(module, loader)


def _optimizer(fused: bool) -> Callable[..., torch.optim.Optimizer]:
    # None: what torch takes by itself, several tensors at a time on a GPU, one by one on a CPU.
    choice = {"fused": True} if fused else {"fused": None, "foreach": None}
    return partial(torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, **choice)


def _acceleration(on: set[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if "compile" in on:
        from lightning_llm.strategies import SingleDeviceStrategy

        arguments["strategy"] = SingleDeviceStrategy(compile=True)
    if "bf16" in on:
        from lightning_llm.plugins import BF16MixedPrecision

        arguments["plugins"] = [BF16MixedPrecision()]
    return arguments
