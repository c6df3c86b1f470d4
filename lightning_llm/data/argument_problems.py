"""The arguments of datamodules by name, and what is wrong with those that several have."""

from __future__ import annotations

import logging
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from lightning_llm.data.file_patterns import shown
from lightning_llm.data.packing import Packing

_LOG = logging.getLogger(__name__)
_OPTIONAL = frozenset(
    {
        "val_micro_batch_size",
        "max_documents",
        "max_train_samples",
        "max_val_samples",
        "vocab_size",
        "eos_id",
    }
)


def constructor_arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, given its ``locals()`` before there are other names."""
    return {name: value for name, value in scope.items() if name not in ("self", "__class__")}


def fraction_problems(arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``val_fraction``."""
    fraction = arguments["val_fraction"]
    if fraction is None:
        return ["val_fraction=None must be a number; 0 is for no validation split"]
    if _is_number(fraction) and 0.0 <= fraction < 1.0:
        return []
    return [f"val_fraction={fraction!r} must be at least 0 and below 1"]


def rate_problems(arguments: Mapping[str, Any], *names: str) -> list[str]:
    """Which arguments are no share between 0 and 1."""
    given = {name: arguments[name] for name in names}
    return [
        f"{name}={value!r} must be between 0 and 1"
        for name, value in given.items()
        if not (_is_number(value) and 0.0 <= value <= 1.0)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def packing_problems(arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``packing`` and ``mask_documents``."""
    problems = choice_problems(arguments, "packing", Packing)
    if arguments["packing"] == "best_fit" and arguments["mask_documents"] is False:
        problems.append(
            "mask_documents=False: packing='best_fit' always keeps documents apart; leave it out, "
            "or use packing='concat'"
        )
    return problems


def choice_problems(arguments: Mapping[str, Any], name: str, allowed: Any) -> list[str]:
    """What is wrong with an argument that is one of a ``Literal``."""
    if arguments[name] in get_args(allowed):
        return []
    return [f"{name}={arguments[name]!r} must be one of {', '.join(get_args(allowed))}"]


def size_problems(arguments: Mapping[str, Any], at_least: Mapping[str, int]) -> list[str]:
    """Which arguments are no integers or below their least value; some may be None."""
    problems = []
    for name, least in at_least.items():
        value = arguments[name]
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            problems.append(f"{name}={value!r} must be an integer of at least {least}")
        elif value < least:
            problems.append(f"{name}={value} must be at least {least}")
    return problems


def warn_of_shared_files(files: Mapping[str, Iterable[Path]]) -> None:
    """Tell of files that validate or test the model and train it as well.

    Args:
        files: By part; those of ``train`` are compared with each other part's.
    """
    learned = {os.path.realpath(file) for file in files.get("train", ())}
    for part, others in files.items():
        shared = [file for file in others if part != "train" and os.path.realpath(file) in learned]
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            _LOG.warning(
                "%s%s train and are the %s part too: its scores are of text that was learned",
                shown(shared[0]),
                more,
                part,
            )
