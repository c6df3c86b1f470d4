"""``lightning-llm report``: a page of pictures from the logs of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_llm.reporting import read_run, render_report


def report_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="lightning-llm report",
        description="Write one self-contained HTML page of one or several runs.",
    )
    parser.add_argument(
        "run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="a folder with metrics.csv"
    )
    parser.add_argument(
        "--output", type=Path, default=None, help="default: report.html in the first RUN_DIR"
    )
    return parser


def run_report(arguments: list[str]) -> int:
    """Write one HTML page of one or several runs."""
    options = report_parser().parse_args(arguments)
    runs = [read_run(directory) for directory in options.run_dirs]
    output = options.output or options.run_dirs[0] / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_report(runs), encoding="utf-8")
    for run in runs:
        for problem in run.problems:
            sys.stderr.write(f"{run.name}: {problem}\n")
    sys.stdout.write(f"{output}\n")
    return 0
