"""`steps_to_loss`: how many steps Muon needs to reach the loss that AdamW ends with.

A learning rate that falls at the end of a run makes a good part of its loss, so a run is compared
with shorter runs that have a whole schedule of their own, not with another run's middle.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from benchmarks.contenders.lightning_trainer import Pacing as PacingCallback
from benchmarks.measures.tokenize import read_texts
from benchmarks.pacing import Pace, Pacer
from benchmarks.plan import Plan
from benchmarks.race import Row, Task
from benchmarks.training import CLIP_NORM

BYTES = 256
# A round is this many steps; the loss of a round is the mean over them.
STEPS = 10


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--lr-adamw", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--lr-muon", type=float, nargs="+", default=[3e-3])
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        default=[0.5, 0.6, 0.75],
        help="lengths of Muon's runs, as shares of AdamW's",
    )
    add_sizes(parser, batch=16)


def add_sizes(parser: ArgumentParser, *, batch: int) -> None:
    """Declare the sizes of the model and of its batch."""
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch", type=int, default=batch)


def write_store(folder: Path, *, quick: bool) -> Path:
    """Write the bytes of the Python standard library as a store and return its folder."""
    from lightning_llm.data import TokenStoreWriter

    with TokenStoreWriter(folder / "store", vocab_size=BYTES) as writer:
        for text in read_texts(None, 400_000 if quick else 8_000_000):
            writer.add(np.frombuffer(text.encode(), np.uint8))
    return folder / "store"


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Write the bytes of the Python standard library as a store, then plan the runs."""
    store = write_store(folder, quick=args.quick)
    sizes = {"dim": args.dim, "layers": args.layers, "seq_len": args.seq_len, "batch": args.batch}
    options = {**sizes, "store": str(store), "device": args.device}
    seeds = args.seeds[:1] if args.quick else args.seeds
    steps = 2 * STEPS if args.quick else args.train_steps
    runs = [("adamw", lr, steps) for lr in args.lr_adamw]
    runs += [
        ("muon", lr, max(STEPS, round(share * steps / STEPS) * STEPS))
        for lr in args.lr_muon
        for share in args.budgets
    ]
    tasks = [
        Task(
            f"{optimizer} lr {lr:g} steps {budget} seed {seed}",
            f"{__name__}:run",
            {**options, "optimizer": optimizer, "lr": lr, "budget": budget, "seed": seed},
            args.device,
            args.threads,
        )
        for optimizer, lr, budget in runs
        for seed in seeds
    ]
    pace = Pace(warmup=1, rounds=max(1, steps // STEPS), steps=STEPS, settle=0)
    settings = {"name_parts": [args.device], **sizes, "seeds": seeds, "train_steps": steps}
    title = (
        f"Steps to AdamW's loss: {args.layers} layers x {args.dim} on source code as bytes, "
        f"{steps} steps"
    )
    columns = ("steps", "last_loss")
    return [
        Plan("steps_to_loss", title, "steps/s", tasks, pace, settings, {}, columns, finish=finish)
    ]


def finish(rows: list[Row]) -> None:
    """Rate each Muon run by the best AdamW run of the same seed: its steps, if it got as far."""
    finished = [row for row in rows if row.get("losses")]
    for row in finished:
        optimizer, _, _, _, budget, _, seed = row["label"].split()
        # After its budget a run goes on with a rate of zero: what it ends with, on more tokens.
        row["losses"] = [*row["losses"][: int(budget) // STEPS], row["losses"][-1]]
        if optimizer != "muon":
            continue
        rivals = [
            other["losses"][-1]
            for other in finished
            if other["label"].startswith("adamw") and other["label"].split()[-1] == seed
        ]
        if rivals and row["losses"][-1] <= min(rivals):
            row["steps_to_loss"] = int(budget)


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train once.

    Args:
        options: Sizes, store, seed, optimizer, rate; ``budget``: steps of the schedule, if not all;
            ``schedule``: ``"wsd"`` (warm-up, constant
            rate, down to zero over the last fifth; the default) or ``"cosine"`` (down to a tenth).
            ``fields`` are further fields of the model.
        pacer: Told after each step.
    """
    from lightning_llm import CausalLM
    from lightning_llm.data import TokenStore
    from lightning_llm.data.loader import TokenLoader
    from lightning_llm.data.packing import ConcatWindows
    from lightning_llm.models import TransformerConfig
    from lightning_llm.optim import AdamW, Muon, WarmupCosine, WarmupStableDecay

    schedules = {"wsd": WarmupStableDecay, "cosine": WarmupCosine}
    schedule = schedules[options.get("schedule", "wsd")]
    optimizer = {"adamw": AdamW, "muon": Muon}[options["optimizer"]]
    rows = ConcatWindows(TokenStore(options["store"]), options["seq_len"])
    loader = TokenLoader(
        rows,
        micro_batch_size=options["batch"],
        shuffle=True,
        drop_last=True,
        seed=options["seed"],
    )
    pacer.units_per_step = 1
    torch.manual_seed(options["seed"])
    config = TransformerConfig(
        vocab_size=BYTES,
        max_seq_len=options["seq_len"],
        n_layers=options["layers"],
        dim=options["dim"],
        n_heads=options["dim"] // 32,
        **options.get("fields", {}),
    )
    module = CausalLM(
        config,
        optimizer=lambda groups: optimizer(groups, lr=options["lr"]),
        lr_scheduler=lambda built: schedule(
            built, warmup_steps=0.05, max_steps=options.get("budget")
        ),
    )
    Trainer(
        accelerator="gpu" if options["device"] == "cuda" else "cpu",
        devices=1,
        max_steps=pacer.total_steps,
        gradient_clip_val=CLIP_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[PacingCallback(pacer)],
    ).fit(module, loader)
