"""`architecture`: what each part of a modern architecture saves in steps, alone and all stacked."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from benchmarks.measures import steps_to_loss
from benchmarks.pacing import Pace
from benchmarks.plan import Plan
from benchmarks.race import Row, Task

# A round is this many steps; the loss of a round is the mean over them.
STEPS = 20
PLAIN = "plain"
STACKED = "all"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--train-steps", type=int, default=400)
    # Of 1e-3, 3e-3 and 1e-2 (AdamW) and 3e-3, 1e-2 and 3e-2 (Muon) the best for the plain model.
    parser.add_argument("--lr-adamw", type=float, default=3e-3)
    parser.add_argument("--lr-muon", type=float, default=1e-2)
    steps_to_loss.add_sizes(parser, batch=8)


def variants(seq_len: int) -> dict[str, dict[str, Any]]:
    """What each run changes of the plain model (rotary, RMSNorm, SwiGLU, AdamW, cosine)."""
    fields: dict[str, dict[str, Any]] = {
        "ReLU squared": {"mlp": "relu2"},
        "QK-norm": {"qk_norm": True},
        "zero residual projections": {"initializer": "zero_residual"},
        "value embeddings": {"value_embeddings": True},
        "residual scalars": {"residual_scalars": True},
        "soft-capped logits": {"logit_softcap": 15.0},
        "windows SSSL": {"sliding_window": seq_len // 4, "sliding_window_pattern": "SSSL"},
        "untied head": {"tie_embeddings": False},
    }
    together = {name: value for part in fields.values() for name, value in part.items()}
    return {
        PLAIN: {},
        **{name: {"fields": part} for name, part in fields.items()},
        "WSD": {"schedule": "wsd"},
        "Muon": {"optimizer": "muon"},
        STACKED: {"fields": together, "schedule": "wsd", "optimizer": "muon"},
    }


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Plan a run of each variant and seed on the bytes of the Python standard library."""
    store = steps_to_loss.write_store(folder, quick=args.quick)
    sizes = {"dim": args.dim, "layers": args.layers, "seq_len": args.seq_len, "batch": args.batch}
    rates = {"adamw": args.lr_adamw, "muon": args.lr_muon}
    seeds = args.seeds[:1] if args.quick else args.seeds
    tasks = []
    for name, changes in variants(args.seq_len).items():
        options = {"optimizer": "adamw", "schedule": "cosine", **changes}
        options |= {**sizes, "store": str(store), "device": args.device}
        options["lr"] = rates[options["optimizer"]]
        tasks += [
            Task(
                f"{name}, seed {seed}",
                f"{steps_to_loss.__name__}:run",
                {**options, "seed": seed},
                args.device,
                args.threads,
            )
            for seed in seeds
        ]
    steps = 2 * STEPS if args.quick else args.train_steps
    pace = Pace(warmup=1, rounds=max(1, steps // STEPS), steps=STEPS, settle=0)
    settings = {"name_parts": [args.device], **sizes, "seeds": seeds, "train_steps": steps}
    settings |= {"lr_adamw": args.lr_adamw, "lr_muon": args.lr_muon}
    title = (
        f"Steps to the plain model's loss: {args.layers} layers x {args.dim} on source code as "
        f"bytes, {steps} steps; one learning rate for each optimizer, tuned for no part"
    )
    columns = ("steps", "last_loss", "milliseconds")
    return [
        Plan("architecture", title, "steps/s", tasks, pace, settings, {}, columns, finish=finish)
    ]


def finish(rows: list[Row]) -> None:
    """Add to each run the steps to the last loss of the plain model of the same seed."""
    finished = {row["label"]: row["losses"] for row in rows if row.get("losses")}
    for row in rows:
        name, _, seed = row["label"].partition(", ")
        plain = finished.get(f"{PLAIN}, {seed}")
        if name != PLAIN and plain and row["label"] in finished:
            row["steps_to_loss"] = steps_to_loss.steps_until(row["losses"], plain[-1], STEPS)
