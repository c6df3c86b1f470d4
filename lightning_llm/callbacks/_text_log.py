"""Text to the loggers that can show it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
                experiment.add_text(f"samples/{index}", _markdown(prompt, text), global_step=step)
        elif hasattr(experiment, "log_text"):
            joined = "\n\n".join(prompt + text for prompt, text in samples)
            if hasattr(logger, "run_id"):  # MLflow: a text artifact of the run
                experiment.log_text(logger.run_id, joined, f"samples/step={step}.txt")
            else:  # Comet
                experiment.log_text(joined, step=step)


def _markdown(prompt: str, text: str) -> str:
    """An indented block: TensorBoard renders Markdown, and samples are not."""
    return "\n".join("    " + line for line in (prompt + text).split("\n"))
