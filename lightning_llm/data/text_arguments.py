"""Check the arguments of `TextDataModule` and turn them into what it works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning_llm.data.argument_problems import (
    choice_problems,
    fraction_problems,
    packing_problems,
    rate_problems,
    size_problems,
    warn_of_shared_files,
)
from lightning_llm.data.corpus import Corpus, DatasetCorpus, FileCorpus
from lightning_llm.data.file_kinds import refused_by_name
from lightning_llm.data.file_patterns import expand_files, shown
from lightning_llm.data.sources import DecodeErrors
from lightning_llm.data.tokenizer import TokenizerSpec
from lightning_llm.errors import InvalidTypeError, InvalidValueError

_AT_LEAST = {
    "seq_len": 1,
    "micro_batch_size": 1,
    "val_micro_batch_size": 1,
    "max_documents": 1,
    "num_workers": 0,
}


def check(arguments: Mapping[str, Any]) -> None:
    """Check arguments by name.

    Raises:
        ValueError: One error that lists every problem.
    """
    problems = _source_problems(SimpleNamespace(**arguments))
    problems += packing_problems(arguments) + choice_problems(arguments, "errors", DecodeErrors)
    problems += fraction_problems(arguments)
    problems += rate_problems(arguments, "fim_rate", "fim_spm_rate")
    problems += size_problems(arguments, _AT_LEAST)
    if problems:
        raise InvalidValueError("TextDataModule: " + "; ".join(problems))


def _source_problems(given: SimpleNamespace) -> list[str]:
    problems = []
    if given.train_files is None and given.dataset is None:
        if given.val_files is None and given.test_files is None:
            problems.append("no text: give train_files or dataset")
        elif not is_pretrained(given.tokenizer):
            problems.append(NO_TRAINING_TEXT)
    if given.train_files is not None and given.dataset is not None:
        problems.append("two sources of text: give train_files or dataset, not both")
    for part in ("val", "test"):
        files, split = getattr(given, f"{part}_files"), getattr(given, f"{part}_split")
        if files is not None and split is not None:
            problems.append(f"give {part}_files or {part}_split, not both")
        if split is not None and given.dataset is None:
            problems.append(f"{part}_split={split!r} is a split of dataset, which is not given")
    return problems


NO_TRAINING_TEXT = (
    "no training data to train the tokenizer on: give train_files or dataset, or, to evaluate a "
    "model, its tokenizer: tokenizer={'pretrained': 'RUN.ckpt'}"
)


def is_pretrained(tokenizer: Any) -> bool:
    """Whether a tokenizer is to be loaded, and needs no text to be trained on."""
    return tokenizer_spec(tokenizer).pretrained is not None


def tokenizer_spec(tokenizer: Any) -> TokenizerSpec:
    """Return the specification that a value stands for.

    Raises:
        TypeError: It is neither a specification, nor its fields, nor a path or name.
    """
    if isinstance(tokenizer, TokenizerSpec):
        return tokenizer
    if isinstance(tokenizer, Mapping):
        return TokenizerSpec(**tokenizer)
    if isinstance(tokenizer, (str, Path)):
        return TokenizerSpec(pretrained=str(tokenizer))
    raise InvalidTypeError(
        f"tokenizer={tokenizer!r}: expected a TokenizerSpec, a mapping of its fields, or the path "
        "or name of a pretrained tokenizer."
    )


def corpora(arguments: Mapping[str, Any]) -> dict[str, Corpus]:
    """Return the corpus of each part ("train", "val", "test") for which there is data.

    Raises:
        FileNotFoundError: A path or pattern stands for no file.
    """
    given = SimpleNamespace(**arguments)
    found: dict[str, Corpus] = {}
    parts = (
        ("train", given.train_files, given.dataset and given.dataset_split, given.max_documents),
        ("val", given.val_files, given.val_split, None),
        ("test", given.test_files, given.test_split, None),
    )
    for part, files, split, limit in parts:
        if files is not None:
            paths = tuple(
                expand_files(
                    files, exclude_folders=given.exclude_folders or (), argument=f"{part}_files"
                )
            )
            if given.errors != "skip":
                _refuse(paths, f"{part}_files")
            found[part] = FileCorpus(paths, given.text_field, given.errors, limit)
        elif split is not None:
            found[part] = DatasetCorpus(
                path=str(given.dataset),
                name=given.dataset_name,
                split=split,
                revision=given.dataset_revision,
                streaming=given.streaming,
                text_field=given.text_field,
                max_documents=limit,
            )
    warn_of_shared_files(
        {part: corpus.files for part, corpus in found.items() if isinstance(corpus, FileCorpus)}
    )
    return found


def _refuse(paths: tuple[Path, ...], argument: str) -> None:
    """Refuse files that are neither text nor rows before anything is read.

    Raises:
        ValueError: The suffix of one says so.
    """
    refused = [(path, kind) for path in paths if (kind := refused_by_name(path)) is not None]
    if refused:
        path, kind = refused[0]
        more = f" So are {len(refused) - 1} more of the files." if len(refused) > 1 else ""
        raise InvalidValueError(f"{argument}: {shown(path)}: {kind}{more}")


def plain(value: Any) -> Any:
    """Return arguments as strings, numbers, lists and dictionaries, as hyperparameters are kept."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=str)
    if isinstance(value, Iterator):  # of paths, and used up by now
        return f"<{type(value).__name__}>"
    # Loggers write UTF-8, which a name on disk need not be.
    return shown(value) if isinstance(value, (str, Path)) else value
