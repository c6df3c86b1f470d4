"""Text to the loggers that can show it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

Sample = tuple[str, str]  # prompt, continuation


def log_samples(loggers: Iterable[Any], samples: list[Sample], step: int) -> None:
    """Show ``samples`` in every logger that has a way to; call on rank zero.

    Loggers are told apart by their methods, so that none of their packages has to be installed.
    """
    for logger in loggers:
        if hasattr(logger, "log_text"):  # Weights & Biases
            rows = [[step, prompt, text] for prompt, text in samples]
            logger.log_text("samples", columns=["step", "prompt", "text"], data=rows, step=step)
            continue
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_text"):  # TensorBoard
            for index, (prompt, text) in enumerate(samples):
                shown = _markdown(prompt + text)
                experiment.add_text(f"samples/{index}", shown, global_step=step)
        elif hasattr(experiment, "log_text"):
            joined = "\n\n".join(prompt + text for prompt, text in samples)
            _log_plain(logger, experiment, "samples", joined, step)


def log_table(
    loggers: Iterable[Any], name: str, rows: Sequence[Mapping[str, str]], step: int
) -> None:
    """Show a table of texts in every logger that has a way to; call on rank zero.

    Args:
        loggers: The trainer's loggers.
        name: Title of the table.
        rows: Column -> text, with the same columns in each row; at least one.
        step: The optimizer step the texts belong to.
    """
    for logger in loggers:
        if hasattr(logger, "log_text"):  # Weights & Biases
            columns = ["step", *rows[0]]
            logger.log_text(
                name, columns=columns, data=[[step, *row.values()] for row in rows], step=step
            )
            continue
        experiment: Any = getattr(logger, "experiment", None)
        blocks = ["\n".join(f"{column}: {text}" for column, text in row.items()) for row in rows]
        if hasattr(experiment, "add_text"):  # TensorBoard
            shown = _markdown("\n\n".join(blocks))
            experiment.add_text(name, shown, global_step=step)
        elif hasattr(experiment, "log_text"):
            _log_plain(logger, experiment, name, "\n\n".join(blocks), step)


def log_fact(loggers: Iterable[Any], name: str, text: str, step: int) -> None:
    """Write down a fact of the run; call on rank zero.

    As text in TensorBoard, whose hyperparameters can be written only once; elsewhere as a
    hyperparameter.
    """
    for logger in loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_text"):
            experiment.add_text(name, _markdown(text), global_step=step)
        else:
            logger.log_hyperparams({name: text})


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]], step: int, epoch: int) -> None:
    """Append rows to a JSON Lines file; a file that cannot be written is only warned of."""
    lines = [json.dumps({"step": step, "epoch": epoch, **row}) for row in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")  # one write: a crash leaves whole lines
    except OSError as error:
        rank_zero_warn(f"Samples were not written to {path}: {error}")


def _log_plain(logger: Any, experiment: Any, name: str, text: str, step: int) -> None:
    if hasattr(logger, "run_id"):  # MLflow: a text artifact of the run
        experiment.log_text(logger.run_id, text, f"{name}/step={step}.txt")
    else:  # Comet
        experiment.log_text(text, step=step)


def _markdown(text: str) -> str:
    """An indented block: TensorBoard renders Markdown, and samples are not."""
    return "\n".join("    " + line for line in text.split("\n"))
