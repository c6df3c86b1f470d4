"""The ``lightning-llm`` command: one word for what to do, then its options.

``fit``, ``validate``, ``test``, ``predict``, ``prepare``, ``plan`` and ``doctor`` take a recipe;
``generate`` and ``export`` take a checkpoint, ``report`` the folders of runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from lightning_llm.errors import LightningLLMError

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
COMMANDS = {**RECIPE_COMMANDS, **RUN_COMMANDS, **OTHER_COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status (0 done, 1 failed, 2 unusable arguments)."""
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
        return _run(command, rest)
    except KeyboardInterrupt as stop:
        said = f" {stop}" if str(stop) else ": nothing was saved" if command == "fit" else ""
        sys.stderr.write(f"interrupted{said}\n")
        return 130
    except Exception as error:
        message = _message_to_user(error)
        if message is None:
            raise
        sys.stderr.write(f"lightning-llm {command}: error: {message}\n")
        return 1


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


def _message_to_user(error: BaseException) -> str | None:
    """Return the sentence of an error raised on purpose, None for any other.

    On purpose means: by this package, or by Lightning's checks of its arguments; also when another
    library wrapped it. So is what a class says of its arguments where jsonargparse keeps the text
    alone. Everything else keeps its traceback, and ``LIGHTNING_LLM_TRACEBACK=1`` keeps all of them.
    """
    if os.environ.get("LIGHTNING_LLM_TRACEBACK"):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if _raised_on_purpose(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    from lightning_llm.cli.parse_errors import refusal_of_class

    return refusal_of_class(str(error))


def _raised_on_purpose(error: BaseException) -> bool:
    if isinstance(error, LightningLLMError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    raised_in = Path(frames[-1].filename).resolve() if frames else Path()
    # A logger without its package is a ModuleNotFoundError that says what to install.
    lightning_checks = isinstance(error, ValueError | TypeError | ModuleNotFoundError) or (
        type(error).__name__ == "MisconfigurationException"
    )
    return lightning_checks and "lightning" in raised_in.parts
