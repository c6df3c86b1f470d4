"""`startup`: seconds from starting Python to the end of the first training step."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.contenders import training_tasks
from benchmarks.pacing import Pace
from benchmarks.plan import Plan, against
from benchmarks.workloads import WORKLOADS

LABELS = "ours,hf,hf_trainer,litgpt,lightning_hf,nanogpt"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="S")
    parser.add_argument("--contenders", default=LABELS, help="comma-separated")


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Plan the starts; each contender draws weights of its own, as a user's run does."""
    options = {"workload": args.workload, "device": args.device, "same_weights": False}
    labels = args.contenders.split(",")
    tasks = training_tasks(labels, options, threads=args.threads, pythons=args.python)
    rounds = args.rounds or (1 if args.quick else 5)
    pace = Pace(warmup=1, rounds=rounds, steps=1, settle=0)
    name_parts = [args.workload, args.device, args.allocator]
    settings = {"name_parts": name_parts, "workload": args.workload}
    title = f"Start to first step, {args.workload}"
    baselines, columns = against(labels[0], tasks), ("seconds", "ratio")
    return [
        Plan("startup", title, "steps/s", tasks, pace, settings, baselines, columns, fresh=True)
    ]
