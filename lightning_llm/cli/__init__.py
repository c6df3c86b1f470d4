"""The ``lightning-llm`` command: one word for what to do, then its options.

``fit``, ``validate``, ``test``, ``predict``, ``prepare``, ``plan`` and ``doctor`` take a recipe;
``generate`` and ``export`` take a checkpoint, ``report`` the folders of runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

RECIPE_COMMANDS = {
    "fit": "train the recipe's model on the recipe's data",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test files",
    "predict": "write the log-likelihood of each row of the data to a file",
    "prepare": "train the tokenizer and write the token store, nothing else",
    "plan": "say what the recipe will need in memory, time and traffic; trains nothing",
    "doctor": "run a few steps of the recipe and report what slows them down or is wrong",
}
RUN_COMMANDS = {
    "report": "draw a page of pictures from the logs of one or several runs",
    "generate": "continue prompts with a trained model",
    "export": "write a checkpoint in the Hugging Face layout",
}
OTHER_COMMANDS = {
    "recipes": "list the recipes that come with the package, or write one to standard output",
    "completion": "write a script that completes commands and keys in bash or zsh",
}
started_at = 0.0  # the time of `main`, which tells what this process was there to see
COMMANDS = {**RECIPE_COMMANDS, **RUN_COMMANDS, **OTHER_COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status (0 done, 1 failed, 2 unusable arguments)."""
    global started_at
    started_at = time.time()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0
    command, *rest = arguments
    if command in ("--version", "-V"):
        from lightning_llm import __version__

        sys.stdout.write(f"lightning-llm {__version__}\n")
        return 0
    try:
        status = _run(command, rest)
        sys.stdout.flush()  # here, where a reader that has left can be told from a fault
        return status
    except KeyboardInterrupt as stop:
        from lightning_llm.cli.failures import rank

        said = f" {stop}" if str(stop) else ": nothing was saved" if command == "fit" else ""
        if str(stop) or not rank():
            sys.stderr.write(f"interrupted{said}\n")
        return 130
    except Exception as error:
        from lightning_llm.cli.failures import report_failure

        return report_failure(command, error)


def _run(command: str, rest: list[str]) -> int:
    if command == "doctor":
        from lightning_llm.cli.doctor import run_doctor

        return run_doctor(rest)
    if command == "plan":
        from lightning_llm.cli.plan import run_plan

        return run_plan(rest)
    if command in RECIPE_COMMANDS:
        from lightning_llm.cli.training import run_training

        return run_training(command, rest)
    if command == "generate":
        from lightning_llm.cli.generate import run_generate

        return run_generate(rest)
    if command == "report":
        from lightning_llm.cli.report import run_report

        return run_report(rest)
    if command == "export":
        from lightning_llm.cli.export import run_export

        return run_export(rest)
    if command == "recipes":
        from lightning_llm.cli.shipped_recipes import run_recipes

        return run_recipes(rest)
    if command == "completion":
        from lightning_llm.cli.completion import run_completion

        return run_completion(rest)
    from difflib import get_close_matches

    close = get_close_matches(command, COMMANDS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    sys.stderr.write(f"lightning-llm: error: unknown command {command!r}{hint}\n\n{_usage()}")
    return 2


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return (
        "usage: lightning-llm COMMAND [options]      (lightning-llm COMMAND --help)\n\n"
        + "\n".join(lines)
        + "\n\nexample:  lightning-llm fit --config recipes/quickstart.yaml\n"
    )
