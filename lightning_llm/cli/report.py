"""``lightning-llm report``: a page of pictures from the logs of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_llm.reporting import read_runs, render_report, write_pngs


def report_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="lightning-llm report",
        description="Write one self-contained HTML page of one or several runs.",
    )
    parser.add_argument(
        "run_dirs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="a folder with a metrics.csv, or one above: of several, the newest that trained",
    )
    parser.add_argument(
        "--output", type=Path, default=None, help="default: report.html in the first RUN_DIR"
    )
    parser.add_argument(
        "--png",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="write each chart as a PNG too; needs pip install 'lightning-llm[png]'",
    )
    return parser


def run_report(arguments: list[str]) -> int:
    """Write one HTML page of one or several runs, and a PNG of each chart if asked to."""
    options = report_parser().parse_args(arguments)
    runs = read_runs(options.run_dirs)
    output = options.output or options.run_dirs[0] / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_report(runs), encoding="utf-8")
    for directory, run in zip(options.run_dirs, runs, strict=True):
        if not directory.resolve().as_posix().endswith(run.name):
            sys.stderr.write(f"{directory}: the run is {run.name}\n")
        for problem in run.problems:
            sys.stderr.write(f"{run.name}: {problem}\n")
    pictures = write_pngs(runs, options.png) if options.png else []
    for file in [output, *pictures]:
        sys.stdout.write(f"{file}\n")
    return 0
