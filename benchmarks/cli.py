"""The command: `python -m benchmarks MEASURE [options]`, `python -m benchmarks render`."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType

from benchmarks import render
from benchmarks.machine import (
    ALLOCATORS,
    busy_cores,
    describe_gpu,
    describe_machine,
    worker_environment,
)
from benchmarks.plan import Plan
from benchmarks.race import Row, first_steps, race
from benchmarks.results import FOLDER, SCHEMA, now, summarize, write_result

# Subcommand -> module (imported when asked for) and what it says of itself.
MEASURES = {
    "run": ("train", "training throughput of all contenders on the same work"),
    "ladder": ("ladder", "the gain of each technique alone and stacked, in tokens of text/s"),
    "steps_to_loss": ("steps_to_loss", "steps that Muon needs to AdamW's loss, several seeds"),
    "architecture": ("architecture", "steps that each part of a modern architecture saves"),
    "loss": ("loss", "extra memory and time of the chunked loss beside whole logits"),
    "tokenize": ("tokenize", "MB/s of encode_texts beside the tokenizers library and tiktoken"),
    "loader": ("loader", "tokens/s of the loader beside other ways to read a token file"),
    "generate": ("generate", "new tokens/s with a key/value cache, at batch 1 and 8"),
    "startup": ("startup", "seconds to the first step, each time in a new process"),
    "checkpoint": ("checkpoint", "seconds that training stands still for a checkpoint"),
    "overhead": ("overhead", "milliseconds of a step beside its arithmetic"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one measurement, or render the documentation's page."""
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(words[0] if words else "").parse_args(words)
    if args.measure == "render":
        render.write_page(args.results, args.docs)
        return
    args.python = dict(args.python)
    command = shlex.join(["python", "-m", "benchmarks", *_without_paths(words)])
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        for plan in _module(args.measure).plan(args, Path(folder)):
            _say(f"{plan.title}: {len(plan.tasks)} contenders, {plan.pace}")
            result = measure(plan, args, command)
            print(render.text_table(result))
            if not args.no_save:
                _say(f"written to {write_result(result, args.results)}")


def measure(plan: Plan, args: Namespace, command: str) -> dict[str, object]:
    """Run a plan and return the content of its result file."""
    environment = worker_environment(args.allocator, args.threads, args.tcmalloc)
    busy_before, date = busy_cores(), now()
    if busy_before is not None and busy_before > render.QUIET_CORES:
        _say(f"{busy_before} cores are busy with something else, figures will be noisy")
    if plan.fresh:
        rows = first_steps(
            plan.tasks, plan.pace.rounds, environment=environment, limit_s=args.limit_s
        )
        _as_steps(rows)
    else:
        rows = race(
            plan.tasks, plan.pace, environment=environment, limit_s=args.limit_s, progress=_say
        )
    for row in rows:
        for line in row.get("log", []):
            _say(f"  {row['label']}: {line}")
    summarize(rows, plan.baselines)
    plan.finish(rows)
    versions: dict[str, str] = {}
    for row in rows:
        versions = {**row.pop("versions", {}), **versions}
    machine = describe_machine() | (describe_gpu() if args.device == "cuda" else {})
    return {
        "schema": SCHEMA,
        "kind": plan.kind,
        "title": plan.title,
        "unit": plan.unit,
        "columns": list(plan.columns),
        "date": date,
        "command": command,
        "settings": {
            **plan.settings,
            "device": args.device,
            "threads": args.threads,
            "allocator": args.allocator,
            "pace": vars(plan.pace),
            "quick": args.quick,
        },
        "machine": {**machine, "busy_cores_before": busy_before},
        "versions": dict(sorted(versions.items())),
        "rows": rows,
    }


def build_parser(chosen: str = "") -> ArgumentParser:
    """Return the parser; only the chosen subcommand has its options, the others stay unloaded."""
    parser = ArgumentParser(
        prog="python -m benchmarks",
        description="Speed, memory and waiting time beside peers, in alternation on one machine.",
    )
    commands = parser.add_subparsers(dest="measure", required=True, metavar="MEASURE")
    for name, (_, about) in MEASURES.items():
        command = commands.add_parser(name, help=about, description=about)
        if name == chosen:
            _module(name).add_arguments(command)
            _add_common(command)
    page = commands.add_parser("render", help="write the tables and charts of the documentation")
    page.add_argument("--results", type=Path, default=FOLDER, help="folder of result files")
    page.add_argument("--docs", type=Path, default=render.DOCS, help="folder of the documentation")
    return parser


def _add_common(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("of every measurement")
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    group.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each")
    group.add_argument("--allocator", choices=ALLOCATORS, default="default", help="for everyone")
    group.add_argument("--tcmalloc", help="path of libtcmalloc, where it is not found")
    group.add_argument("--warmup", type=int, help="untimed steps at the start")
    group.add_argument("--rounds", type=int, help="turns of each contender")
    group.add_argument("--steps", type=int, help="timed steps of a turn")
    group.add_argument("--limit-s", type=float, default=900.0, help="longest silence of a worker")
    group.add_argument(
        "--python",
        type=_interpreter,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="another interpreter for a contender, e.g. litgpt=envs/litgpt/bin/python",
    )
    group.add_argument("--quick", action="store_true", help="least work that runs through")
    group.add_argument("--results", type=Path, default=FOLDER, help="folder of result files")
    group.add_argument("--no-save", action="store_true", help="print, write no file")


def _interpreter(word: str) -> tuple[str, str]:
    name, found, path = word.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{word!r} must be NAME=PATH")
    return name, str(Path(path).expanduser().absolute())


def _module(measure: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.measures.{MEASURES[measure][0]}")


def _as_steps(rows: list[Row]) -> None:
    """Give rows of starts the fields of a race: one start is one step."""
    for row in rows:
        seconds = row.pop("startup_seconds")
        row |= {
            "units_per_step": 1.0,
            "seconds_per_step": seconds,
            "cpu_seconds_per_step": [0.0] * len(seconds),
            "peak_memory_bytes": [0] * len(seconds),
        }


def _without_paths(words: list[str]) -> list[str]:
    """The command as it can be shown: places on this machine mean nothing elsewhere."""
    shown = []
    for word in words:
        option, equals, path = word.partition("=")
        is_path = os.sep in path or os.sep in option
        shown.append(f"{option}{equals}PATH" if equals and is_path else "PATH" if is_path else word)
    return shown


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
