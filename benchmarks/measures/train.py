"""`run`: training throughput of all contenders on one workload."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.contenders import CONTENDERS, SETS, training_tasks
from benchmarks.plan import Pacing, Plan
from benchmarks.workloads import WORKLOADS

PACE = Pacing(warmup=5, rounds=7, steps=5)
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    labels = ", ".join(
        name + "".join(f"[+{extra}]" for extra in contender.extras)
        for name, contender in CONTENDERS.items()
    )
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="S")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")
    parser.add_argument(
        "--contenders",
        default="default",
        help=f"comma-separated, or a set: {', '.join(SETS)}. There are {labels}",
    )
    parser.add_argument(
        "--optimizer",
        choices=("foreach", "fused", "loop"),
        default="foreach",
        help="how AdamW runs, for everyone (plain Lightning refuses fused with bf16-mixed)",
    )
    parser.add_argument("--batch", type=int, help="rows of a step, for everyone")


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Plan one race."""
    labels = SETS.get(args.contenders, args.contenders).split(",")
    chosen = args.contenders if args.contenders in SETS else "chosen"
    options = {
        "workload": args.workload,
        "precision": args.precision,
        "device": args.device,
        "optimizer": args.optimizer,
        "batch": args.batch,
    }
    tasks = training_tasks(labels, options, threads=args.threads, pythons=args.python)
    work = WORKLOADS[args.workload]
    default_batch = work.batch_cuda if args.device == "cuda" else work.batch
    settings = {
        "name_parts": [args.workload, args.precision, args.device, args.allocator, chosen]
        + [args.optimizer] * (args.optimizer != "foreach"),
        "workload": args.workload,
        "precision": args.precision,
        "optimizer": f"AdamW {args.optimizer}",
        "batch": args.batch or default_batch,
        "seq_len": work.seq_len,
    }
    title = f"{args.workload}: {work.about}; {args.precision}, batch {settings['batch']}"
    if args.optimizer != "foreach":
        title += f", {args.optimizer} AdamW"
    pace = PACE.resolve(args)
    return [Plan("run", title, "tokens/s", tasks, pace, settings, like_for_like(labels))]


def like_for_like(labels: list[str]) -> dict[str, str]:
    """Compare a contender with ours of the same setting; the first row where there is none."""
    baselines = {}
    for label in labels:
        same = "ours+compile" if "compile" in label.split("+") else "ours"
        baselines[label] = same if same in labels else labels[0]
    return baselines
