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
    """Plan the runs of each seed, one seed after another, on the bytes of Python's own library."""
    store = steps_to_loss.write_store(folder, quick=args.quick)
    sizes = {"dim": args.dim, "layers": args.layers, "seq_len": args.seq_len, "batch": args.batch}
    rates = {"adamw": args.lr_adamw, "muon": args.lr_muon}
    steps = 2 * STEPS if args.quick else args.train_steps
    pace = Pace(warmup=1, rounds=max(1, steps // STEPS), steps=STEPS, settle=0)
    columns = ("steps", "last_loss", "milliseconds")
    plans = []
    for seed in args.seeds[:1] if args.quick else args.seeds:
        tasks = []
        for name, changes in variants(args.seq_len).items():
            options = {"optimizer": "adamw", "schedule": "cosine", **changes, **sizes}
            options |= {"store": str(store), "device": args.device, "seed": seed}
            options["lr"] = rates[options["optimizer"]]
            run = f"{steps_to_loss.__name__}:run"
            tasks.append(Task(name, run, options, args.device, args.threads))
        settings = {"name_parts": [args.device, f"seed {seed}"], **sizes, "train_steps": steps}
        settings |= {"lr_adamw": args.lr_adamw, "lr_muon": args.lr_muon}
        title = (
            f"Steps to the plain model's loss: {args.layers} layers x {args.dim} on source code as "
            f"bytes, {steps} steps, seed {seed}; one learning rate for each optimizer, tuned for "
            "no part"
        )
        plans.append(
            Plan(
                "architecture", title, "steps/s", tasks, pace, settings, {}, columns, finish=finish
            )
        )
    return plans


def finish(rows: list[Row]) -> None:
    """Add to each run the steps to the last loss of the plain model."""
    finished = {row["label"]: row["losses"] for row in rows if row.get("losses")}
    if PLAIN not in finished:
        return
    goal = finished[PLAIN][-1]
    for row in rows:
        if row["label"] != PLAIN and row["label"] in finished:
            row["steps_to_loss"] = steps_until(row["losses"], goal, STEPS)


def steps_until(losses: list[float], goal: float, steps: int) -> int | None:
    """Return the steps until the mean loss of a round of ``steps`` is at the goal, or None."""
    for place, loss in enumerate(losses):
        if loss <= goal:
            return (place + 1) * steps
    return None
