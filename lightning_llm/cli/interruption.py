"""What a command says when Ctrl-C ends it: what is saved, and how to go on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as L

from lightning_llm.callbacks import Preemption
from lightning_llm.callbacks.preemption import Preempted

_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
_REPLACED = {"--resume": True, "--ckpt_path": True, "--overwrite": False}  # takes a value or not


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a command; the message says what became of its work."""


def tell_how_to_continue(trainer: L.Trainer, arguments: Sequence[str]) -> None:
    """Have `Preemption` name the command that continues the run."""
    again = command_to_continue(arguments)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Preemption):
            callback.how_to_continue = again


def command_to_continue(arguments: Sequence[str]) -> str:
    """Return the command line of ``fit`` that continues the run of these arguments."""
    if any(name in os.environ for name in _LAUNCHERS):
        return "the same command and --resume auto"
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name not in _REPLACED:
            kept.append(argument)
        elif _REPLACED[name] and not equals:
            next(rest, None)
    return shlex.join(["lightning-llm", "fit", *kept, "--resume", "auto"])


@contextmanager
def interruptions(trainer: L.Trainer, command: str) -> Iterator[None]:
    """Turn the exit that Lightning makes of a Ctrl-C into one that says what is saved.

    Raises:
        Interrupted: Ctrl-C ended the command, and nobody saved it.
    """
    try:
        yield
    except Preempted as stop:
        if stop.path is None and trainer.is_global_zero:
            raise Interrupted(_what_is_saved(trainer)) from None
        raise
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        raise Interrupted(_what_is_saved(trainer) if command == "fit" else "") from None


def _what_is_saved(trainer: L.Trainer) -> str:
    if not trainer.is_global_zero:
        return ""
    step = trainer.global_step
    paths = {
        Path(path)
        for callback in trainer.checkpoint_callbacks
        for name in ("last_model_path", "best_model_path")
        if (path := getattr(callback, name, ""))
    }
    saved = [path for path in paths if path.exists()]
    if not saved:
        when = f"after step {step:,}" if step else "before the first step was done"
        since = f" since it went on from {trainer.ckpt_path}" if trainer.ckpt_path else ""
        return f"{when}: nothing was saved{since}"
    newest = max(saved, key=lambda path: path.stat().st_mtime_ns)
    return f"after step {step:,}: nothing was saved since {newest}"
