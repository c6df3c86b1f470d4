"""The arguments of datamodules by name, and what is wrong with those that several have."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from lightning_llm.data.packing import Packing

_LOG = logging.getLogger(__name__)


def constructor_arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, given its ``locals()`` before there are other names."""
    return {name: value for name, value in scope.items() if name not in ("self", "__class__")}


def fraction_problems(arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``val_fraction``."""
    fraction = arguments["val_fraction"]
    if 0.0 <= fraction < 1.0:
        return []
    return [f"val_fraction={fraction} must be at least 0 and below 1"]


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
    """Which arguments are below their least value; None is none."""
    given = {name: arguments[name] for name in at_least}
    return [
        f"{name}={value} must be at least {at_least[name]}"
        for name, value in given.items()
        if value is not None and value < at_least[name]
    ]


def warn_of_shared_files(files: Mapping[str, Iterable[Path]]) -> None:
    """Tell of files that validate or test the model and train it as well.

    Args:
        files: By part; those of ``train`` are compared with each other part's.
    """
    learned = {os.path.abspath(file) for file in files.get("train", ())}
    for part, others in files.items():
        shared = [file for file in others if part != "train" and os.path.abspath(file) in learned]
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            _LOG.warning(
                "%s%s train and are the %s part too: its scores are of text that was learned",
                shared[0],
                more,
                part,
            )
