"""Text files in, documents out: plain text, JSON lines and Parquet, compressed or not."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_llm.data.readers_base import DecodeErrors, Document, SourceStats
from lightning_llm.data.readers_rows import read_jsonl, read_parquet
from lightning_llm.data.readers_text import read_text, split_file_range
from lightning_llm.errors import (
    FileAccessError,
    InvalidTypeError,
    InvalidValueError,
    MissingFileError,
)

__all__ = [
    "JSON_LINES",
    "DecodeErrors",
    "Document",
    "SourceStats",
    "expand_files",
    "fingerprint_files",
    "is_plain_text",
    "layout_of",
    "read_documents",
    "split_file_range",
]

_COMPRESSED = (".gz", ".zst")
JSON_LINES = (".jsonl", ".ndjson", ".jsonlines", ".json-lines")
_DIRECTORY_SUFFIXES = (".txt", *JSON_LINES, ".parquet")


def layout_of(path: Path) -> str:
    """Return the suffix, in lower case, that says how a file is laid out; compression aside."""
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def is_plain_text(path: str | Path, *, compressed: bool = True) -> bool:
    """Tell whether a file is read as one plain-text document.

    Args:
        path: The file; only its name is looked at.
        compressed: Whether a compressed one counts too.
    """
    path = Path(path)
    plain = layout_of(path) not in (*JSON_LINES, ".parquet", ".json")
    return plain and (compressed or path.suffix.lower() not in _COMPRESSED)


def expand_files(
    patterns: str | Path | Sequence[str | Path], *, exclude_folders: Sequence[str] = ()
) -> list[Path]:
    """Turn paths, globs and directories into the files they stand for.

    ``**`` in a glob matches any depth. A directory stands for the ``.txt``, ``.jsonl`` and
    ``.parquet`` files below it (compressed or not, hidden ones left out); other suffixes need a
    glob, such as ``src/**/*.py``.

    Args:
        patterns: Paths, globs and directories.
        exclude_folders: Names of folders to leave out, at any depth below a directory or below the
            part of a glob that has no wildcard.

    Returns:
        The files, sorted by path, each once, however often it was reached.

    Raises:
        FileNotFoundError: A path or pattern stands for no file.
        PermissionError: A file is not readable.
        ValueError: No pattern at all, or a path that is no regular file.
        TypeError: A pattern is neither a string nor a path.
    """
    listed = [patterns] if isinstance(patterns, (str, os.PathLike)) else list(patterns)
    if not listed:
        raise InvalidValueError("no files given: expected at least one path or glob.")
    if isinstance(exclude_folders, str):
        raise InvalidTypeError(
            f"exclude_folders: expected a list of names, got {exclude_folders!r}."
        )
    excluded = frozenset(exclude_folders)
    found = [file for pattern in listed for file in _expand(pattern, excluded)]
    unique: dict[str, str] = {}
    for file in sorted(found, key=os.path.abspath):
        unique.setdefault(os.path.realpath(file), file)
    for file in unique.values():
        if not os.access(file, os.R_OK):
            raise FileAccessError(f"{file}: no permission to read it.")
    return [Path(file) for file in unique.values()]


def _expand(pattern: str | Path, excluded: frozenset[str]) -> list[str]:
    if not isinstance(pattern, (str, os.PathLike)):
        raise InvalidTypeError(f"files: expected a path or glob, got {type(pattern).__name__}.")
    path = os.path.expanduser(os.fspath(pattern))
    if os.path.isdir(path):
        return _without(excluded, _files_below(path), path)
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise InvalidValueError(f"{path}: not a regular file.")
        return [path]
    if not path or not glob.has_magic(path):
        raise MissingFileError(f"no file {path!r} (working directory: {os.getcwd()}).")
    matches = glob.glob(path, recursive=True)
    files = [match for match in matches if os.path.isfile(match)]
    if not files:
        only = " but directories" if matches else ""
        raise MissingFileError(
            f"no file matches {path!r}: nothing found{only} (working directory: {os.getcwd()})."
        )
    return _without(excluded, files, path)


def _without(excluded: frozenset[str], files: list[str], pattern: str) -> list[str]:
    """Leave out the files that lie in an excluded folder below the fixed part of the pattern."""
    if not excluded:
        return files
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    kept = [file for file in files if excluded.isdisjoint(Path(file).parts[fixed:-1])]
    if not kept:
        raise MissingFileError(
            f"{pattern!r}: every one of the {len(files)} files lies in one of exclude_folders="
            f"{sorted(excluded)}."
        )
    return kept


def _files_below(directory: str) -> list[str]:
    matches = glob.glob(os.path.join(glob.escape(directory), "**", "*"), recursive=True)
    files = [match for match in matches if os.path.isfile(match)]
    chosen = [file for file in files if layout_of(Path(file)) in _DIRECTORY_SUFFIXES]
    if not chosen:
        seen = sorted({os.path.splitext(file)[1] for file in files})
        raise MissingFileError(
            f"no {', '.join(_DIRECTORY_SUFFIXES)} file below the directory {directory!r} (working "
            f"directory: {os.getcwd()}); suffixes there: {seen}. Name other plain-text files by "
            "a glob, such as 'src/**/*.py'."
        )
    return chosen


def read_documents(
    path: str | Path,
    *,
    text_field: str = "text",
    errors: DecodeErrors = "strict",
    start: int = 0,
    stop: int | None = None,
    stats: SourceStats | None = None,
) -> Iterator[Document]:
    """Yield the documents of one file, in order, in bounded memory.

    ``.jsonl`` (one object a line) and ``.parquet`` hold one document a line or row; every other
    suffix is plain text, and the whole file one document. ``.gz`` and ``.zst`` are decompressed.
    A byte-order mark at the start of a file is no text; everything else is kept as it is (line
    ends, NUL, U+2028). Empty documents are left out and counted.

    Args:
        path: The file.
        text_field: Key or column that holds the text.
        errors: For text that is not valid Unicode: ``strict`` stops, ``replace`` puts U+FFFD in its
            place, ``skip`` leaves the document out and counts it.
        start: First byte to read; uncompressed plain text only (see ``split_file_range``).
        stop: Byte to stop before; uncompressed plain text only.
        stats: Counters to add to.

    Raises:
        ValueError: Bad content, named by file, line or row, and key; a damaged compressed file.
    """
    path = Path(path)
    stats = stats if stats is not None else SourceStats()
    if errors not in ("strict", "replace", "skip"):
        raise InvalidValueError(f"errors={errors!r} must be 'strict', 'replace' or 'skip'.")
    if (start or stop is not None) and not is_plain_text(path, compressed=False):
        raise InvalidValueError(f"{path}: start and stop need an uncompressed plain-text file.")
    kind = layout_of(path)
    if kind in JSON_LINES:
        return read_jsonl(path, text_field=text_field, errors=errors, stats=stats)
    if kind == ".parquet":
        return read_parquet(path, text_field=text_field, errors=errors, stats=stats)
    if kind == ".json":
        raise InvalidValueError(
            f"{path}: .json is not read, as it may hold one value or many. Rename it to .jsonl if "
            "each line is one object, or to .txt to train on its text."
        )
    return read_text(path, errors=errors, start=start, stop=stop, stats=stats)


def fingerprint_files(paths: Sequence[str | Path]) -> str:
    """Return one SHA-256 over the names and contents of files, in their order.

    The directory does not count, so a corpus that is moved keeps its fingerprint.
    """

    def one(path: str | Path) -> bytes:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    total = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for path, digest in zip(paths, pool.map(one, paths)):
            total.update(hashlib.sha256(Path(path).name.encode()).digest() + digest)
    return total.hexdigest()
