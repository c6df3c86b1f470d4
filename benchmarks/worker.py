"""The process of one contender: `python -m benchmarks.worker TASK.json`, started by `race`.

Messages go to the standard output it was started with, one JSON object in a line; a line on
standard input is its turn. What the contender prints goes to standard error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pacing import Message, Pace, Pacer, UnavailableError

PACKAGES = (
    "torch lightning transformers accelerate tokenizers tiktoken litgpt datasets numpy rich triton"
).split()


def main(argv: list[str]) -> None:
    """Run the contender that the file names."""
    task = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def report(message: Message) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    def wait() -> None:
        if not sys.stdin.readline():
            sys.exit(0)  # the measuring process is gone

    try:
        prepare_device(task["device"], task.get("threads"))
        pacer = Pacer(Pace(**task["pace"]), report=report, wait=wait, device=task["device"])
        resolve(task["run"])(task["options"], pacer)
        report({"event": "done", "versions": versions()})
    except (UnavailableError, ModuleNotFoundError) as reason:
        report({"event": "skipped", "reason": str(reason)})
    except Exception as error:
        traceback.print_exc()
        report({"event": "failed", "reason": f"{type(error).__name__}: {error}"})


def resolve(name: str) -> Callable[[dict[str, Any], Pacer], None]:
    """Return the function ``package.module:function``."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def versions() -> dict[str, str]:
    """Return the installed version of each package that matters here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def prepare_device(device: str, threads: int | None) -> None:
    """Give every contender the same threads and matrix precision."""
    if device == "cpu" and not threads:
        return
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UnavailableError("--device cuda, but torch.cuda.is_available() is False")
        torch.set_float32_matmul_precision("high")


if __name__ == "__main__":
    main(sys.argv[1:])
