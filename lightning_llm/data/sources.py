"""Text files in, documents out: plain text, JSON lines, tables and Parquet, compressed or not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_llm.data.file_kinds import (
    COMPRESSED,
    JSON_LINES,
    TABLES,
    layout_of,
    refused_by_name,
)
from lightning_llm.data.file_patterns import expand_files, shown
from lightning_llm.data.readers_base import DecodeErrors, Document, SourceStats
from lightning_llm.data.readers_csv import read_csv
from lightning_llm.data.readers_rows import is_json_lines, read_jsonl, read_parquet
from lightning_llm.data.readers_text import read_text, split_file_range
from lightning_llm.errors import InvalidValueError

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


def is_plain_text(path: str | Path, *, compressed: bool = True) -> bool:
    """Tell whether a file is read as one plain-text document.

    Args:
        path: The file; only its name is looked at.
        compressed: Whether a compressed one counts too.
    """
    path = Path(path)
    plain = layout_of(path) not in (*JSON_LINES, *TABLES, ".parquet", ".json")
    plain = plain and refused_by_name(path) is None
    return plain and (compressed or path.suffix.lower() not in COMPRESSED)


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

    ``.jsonl`` (one object a line; ``.json`` too if that is what it holds), ``.csv``, ``.tsv`` and
    ``.parquet`` hold one document a line or row. Archives, office documents, databases, images and
    other binary kinds are refused, by their suffix or their content. Everything else is plain text,
    and the whole file one document. ``.gz``, ``.zst``, ``.xz`` and ``.bz2`` are decompressed. A
    byte-order mark at the start of a file is no text; everything else is kept as it is (line ends,
    NUL, U+2028). Empty documents are left out and counted.

    Args:
        path: The file.
        text_field: Key or column that holds the text; ``meta.text`` is field ``text`` of field
            ``meta``, unless a field has that very name.
        errors: For text that is not valid Unicode: ``strict`` stops, ``replace`` puts U+FFFD in its
            place, ``skip`` leaves the document out and counts it, a file that is no text included.
        start: First byte to read; uncompressed plain text only (see ``split_file_range``).
        stop: Byte to stop before; uncompressed plain text only.
        stats: Counters to add to.

    Raises:
        ValueError: Bad content, named by file, line or row, and key; a damaged compressed file; a
            file that holds no text.
    """
    path = Path(path)
    stats = stats if stats is not None else SourceStats()
    if errors not in ("strict", "replace", "skip"):
        raise InvalidValueError(f"errors={errors!r} must be 'strict', 'replace' or 'skip'.")
    if (start or stop is not None) and not is_plain_text(path, compressed=False):
        raise InvalidValueError(
            f"{shown(path)}: start and stop need an uncompressed plain-text file."
        )
    if (refused := refused_by_name(path)) is not None:
        if errors != "skip":
            raise InvalidValueError(f"{shown(path)}: {refused}")
        stats.skip(shown(path))
        return iter(())
    kind = layout_of(path)
    if kind in JSON_LINES or (kind == ".json" and is_json_lines(path)):
        return read_jsonl(path, text_field=text_field, errors=errors, stats=stats)
    if kind in TABLES:
        return read_csv(path, text_field=text_field, errors=errors, stats=stats)
    if kind == ".parquet":
        return read_parquet(path, text_field=text_field, errors=errors, stats=stats)
    if kind == ".json":
        raise InvalidValueError(
            f"{shown(path)}: its first line is no whole JSON object, and a .json file is read only "
            "if it holds one object a line. Write one object a line (`jq -c '.[]'` turns a list "
            "into that). Rename it to .jsonl if each line is one object, or to .txt to train on "
            "its text as it is."
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
            # A name that is no UTF-8 has its bytes as surrogates.
            name = Path(path).name.encode("utf-8", "surrogateescape")
            total.update(hashlib.sha256(name).digest() + digest)
    return total.hexdigest()
