"""Check the arguments of the task datamodules and turn them into what they work with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_llm.data.argument_problems import (
    choice_problems,
    fraction_problems,
    size_problems,
    warn_of_shared_files,
)
from lightning_llm.data.corpus import Part
from lightning_llm.data.examples import RowErrors
from lightning_llm.data.file_patterns import expand_files, listed
from lightning_llm.data.packed_examples import TooLong
from lightning_llm.data.rows import AlignedRows, DatasetRows, FileRows, FirstRows, RowSource
from lightning_llm.data.text_arguments import NO_TRAINING_TEXT, is_pretrained
from lightning_llm.errors import InvalidTypeError, InvalidValueError

ExamplePacking = Literal["best_fit", "pad"]
Files = str | Path | Sequence[str | Path]

# What users write for the place of what is learned, as if the template held the whole example.
_LEARNED = ("target", "answer", "answers")
PARTS: tuple[Part, ...] = ("train", "val", "test")
_AT_LEAST = {
    "seq_len": 1,
    "micro_batch_size": 1,
    "val_micro_batch_size": 1,
    "max_train_samples": 1,
    "max_val_samples": 1,
    "num_workers": 0,
}


def check_examples(owner: str, arguments: Mapping[str, Any], problems: Sequence[str] = ()) -> None:
    """Check arguments by name.

    Args:
        owner: Class whose arguments they are.
        arguments: By name.
        problems: What else is wrong with them.

    Raises:
        ValueError: One error that lists every problem.
    """
    found = [*_source_problems(arguments), *problems]
    found += choice_problems(arguments, "packing", ExamplePacking)
    found += choice_problems(arguments, "too_long", TooLong)
    found += choice_problems(arguments, "errors", RowErrors)
    found += fraction_problems(arguments)
    found += size_problems(arguments, _AT_LEAST)
    if found:
        raise InvalidValueError(f"{owner}: " + "; ".join(found))


def template_problems(template: str, fields: Sequence[str]) -> list[str]:
    """Return what is wrong with a prompt's template, in which each field stands once."""
    problems = [
        f"template={template!r} must contain {{{name}}} once"
        for name in fields
        if template.count(f"{{{name}}}") != 1
    ]
    named = dict.fromkeys(re.findall(r"\{(\w+)\}", template))
    problems += [
        f"template={template!r} is the prompt alone, and {{{name}}} would stay in it as it is: "
        f"what is to be learned follows it by itself, and its fields are {', '.join(fields)}"
        for name in named
        if name in _LEARNED
    ]
    return problems


def _source_problems(given: Mapping[str, Any]) -> list[str]:
    problems = []
    for part in PARTS:
        sides = [given.get(f"{part}_{side}") for side in ("source", "target")]
        if (sides[0] is None) != (sides[1] is None):
            problems.append(f"give {part}_source and {part}_target together")
        chosen = [
            name
            for name in (f"{part}_files", f"{part}_source", f"{part}_split")
            if given.get(name) is not None
        ]
        if len(chosen) > 1:
            problems.append(f"give {' or '.join(chosen)}, not both")
        split = given.get(f"{part}_split")
        if split is not None and given["dataset"] is None:
            problems.append(f"{part}_split={split!r} is a split of dataset, which is not given")
    own = [given["train_files"], given.get("train_source")]
    evaluated = [
        given.get(f"{part}_{side}") for part in ("val", "test") for side in ("files", "source")
    ]
    if given["dataset"] is None and own == [None, None] and any(evaluated):
        if not is_pretrained(given["tokenizer"]):
            problems.append(NO_TRAINING_TEXT)
    elif given["dataset"] is None and own == [None, None]:
        aligned = ", train_source and train_target" if "train_source" in given else ""
        problems.append(f"no training data: give train_files{aligned} or dataset")
    elif given["dataset"] is not None and own != [None, None]:
        problems.append("two sources of training data: give files or dataset, not both")
    return problems


def row_sources(
    given: Mapping[str, Any],
    *,
    columns: tuple[str, ...] = (),
    squad: bool = False,
    needed: tuple[str, ...] = (),
) -> dict[Part, RowSource]:
    """Return the rows of each part for which there is data.

    Args:
        given: Arguments by name, checked.
        columns: Names of the columns of ``.tsv`` files without a header, and of the sides of
            aligned files.
        squad: Whether ``.json`` files may be in SQuAD's layout.
        needed: Columns that the header of ``.csv`` and ``.tsv`` files must name.

    Raises:
        FileNotFoundError: A path or pattern stands for no file.
        ValueError: Aligned files do not come in pairs.
    """
    found: dict[Part, RowSource] = {}
    for part in PARTS:
        split = given["dataset_split"] if part == "train" else given[f"{part}_split"]
        if given[f"{part}_files"] is not None:
            files = tuple(expand_files(given[f"{part}_files"], argument=f"{part}_files"))
            found[part] = FileRows(files, columns, squad, needed or columns)
        elif given.get(f"{part}_source") is not None:
            first, second = (
                _in_order(given[f"{part}_{side}"], f"{part}_{side}")
                for side in ("source", "target")
            )
            found[part] = AlignedRows(first, second, (columns[0], columns[1]))
        elif given["dataset"] is not None and split is not None:
            found[part] = DatasetRows(
                path=str(given["dataset"]),
                name=given["dataset_name"],
                split=split,
                revision=given["dataset_revision"],
                streaming=given["streaming"],
            )
    warn_of_shared_files(
        {
            part: rows.files if isinstance(rows, FileRows) else rows.first
            for part, rows in found.items()
            if isinstance(rows, FileRows | AlignedRows)
        }
    )
    if given["max_train_samples"] is not None:
        found["train"] = FirstRows(found["train"], given["max_train_samples"])
    return found


def _in_order(patterns: Files, argument: str) -> tuple[Path, ...]:
    """Expand each pattern by itself: of aligned files, the order of the list is what pairs them.

    A file that is listed twice is read twice, as its counterparts are.
    """
    if isinstance(patterns, set | frozenset):
        raise InvalidTypeError(f"{argument}: a set has no order; aligned files need a list.")
    return tuple(
        file
        for pattern in listed(patterns, argument)
        for file in expand_files(pattern, argument=argument, unique=False)
    )
