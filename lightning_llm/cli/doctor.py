"""``doctor``: a few steps of a recipe under observation, then a report on standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace

from lightning_llm.cli.training import RecipeCLI, prepare_parsing
from lightning_llm.diagnostics import Report, advise, as_text, examine
from lightning_llm.diagnostics.allocator import GLIBC_SETTINGS

# A second start of the command; longer than this and something is wrong with it.
_MEASURING_SECONDS = 600.0


def run_doctor(arguments: Sequence[str]) -> int:
    """Build data, model and trainer of a recipe, run a few steps, write the report."""
    given = list(arguments)
    # Progress bars and libraries write to standard output; the report has it alone.
    with redirect_stdout(sys.stderr):
        cli = RecipeCLI("doctor", prepare_parsing(given))
        options = cli.config
        report = examine(
            cli.trainer,
            cli.model,
            cli.datamodule,
            steps=options["steps"],
            warmup=options["warmup"],
        )
        if options["measure_allocator"] and _is_worth_measuring(report):
            report = replace(report, allocator_speedup=_allocator_speedup(report, given))
        report = replace(report, advice=advise(report))
    if cli.trainer.is_global_zero:
        as_json = options["format"] == "json"
        text = json.dumps(report.as_dict(), indent=2) + "\n" if as_json else as_text(report)
        sys.stdout.write(text)
    return 0


def _is_worth_measuring(report: Report) -> bool:
    setup = report.setup
    on_host = setup.device_type == "cpu" and setup.world_size == 1
    return on_host and setup.allocator == "glibc" and report.tokens_per_second is not None


def _allocator_speedup(report: Report, arguments: list[str]) -> float | None:
    """Run the same steps in a process with glibc's settings; return the ratio of the speeds."""
    command = [sys.executable, "-m", "lightning_llm.cli", "doctor", *arguments]
    command += ["--format", "json", "--measure_allocator", "false"]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, **GLIBC_SETTINGS, "PYTHONPATH": paths}
    sys.stderr.write("the same steps once more, with the allocator's settings ...\n")
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_MEASURING_SECONDS,
            check=True,
        )
        tuned = json.loads(done.stdout)["step_seconds"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        sys.stderr.write("the allocator's settings could not be measured\n")
        return None
    return report.step_seconds / tuned if tuned and report.step_seconds else None
