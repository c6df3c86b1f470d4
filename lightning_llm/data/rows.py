"""Rows of named fields: JSON lines, Parquet, tab-separated text, aligned files, datasets.

Where `lightning_llm.data.sources` reads one text per document, a task needs several fields of a
row. Every row comes with where it is from (``file:line``), for messages.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightning_llm.data.cache import content_hash, remembered_fingerprint
from lightning_llm.data.dataset_split import DatasetSplit
from lightning_llm.data.readers_base import invalid_utf8, open_bytes, strip_bom
from lightning_llm.data.readers_rows import parse_line, raw_lines, seekable
from lightning_llm.data.sources import JSON_LINES, fingerprint_files, layout_of
from lightning_llm.errors import InvalidValueError

Row = tuple[dict[str, Any], str]
_PARQUET_ROWS = 256


class RowSource(Protocol):
    """A repeatable stream of rows."""

    def rows(self) -> Iterator[Row]:
        """Yield each row and where it is from, always in the same order."""

    def fingerprint(self, root: Path) -> str:
        """Return a hash that changes with the content; ``root`` is the cache."""


@dataclass(frozen=True)
class FileRows:
    """The rows of ``.jsonl``, ``.parquet`` and ``.tsv`` files, and of SQuAD's ``.json``.

    Attributes:
        files: As `lightning_llm.data.sources.expand_files` returns them.
        columns: Names of the columns of a ``.tsv`` file, in order.
        squad: Whether a ``.json`` file is one in the layout of SQuAD.
    """

    files: tuple[Path, ...]
    columns: tuple[str, ...] = ()
    squad: bool = False

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the files, one after the other."""
        return itertools.chain.from_iterable(self._read(file) for file in self.files)

    def fingerprint(self, root: Path) -> str:
        """Return a hash of names and contents of the files and how they are read."""
        return content_hash([_content(self.files, root), self.columns, self.squad])

    def _read(self, path: Path) -> Iterator[Row]:
        kind = layout_of(path)
        if kind in JSON_LINES:
            return _read_jsonl(path)
        if kind == ".parquet":
            return _read_parquet(path)
        if kind == ".tsv" and self.columns:
            return _read_tsv(path, self.columns)
        if kind == ".json" and self.squad:
            return _read_squad(path)
        known = [".jsonl", ".parquet", *[".tsv"] * bool(self.columns), *[".json"] * self.squad]
        raise InvalidValueError(
            f"{path}: rows are read from {', '.join(known)} files, not {kind!r}."
        )


@dataclass(frozen=True)
class AlignedRows:
    """Line i of one file belongs to line i of another.

    Attributes:
        first: Files of the one side, in order.
        second: As many of the other side.
        columns: Names of the two fields.
    """

    first: tuple[Path, ...]
    second: tuple[Path, ...]
    columns: tuple[str, str]

    def __post_init__(self) -> None:
        if len(self.first) != len(self.second):
            raise InvalidValueError(
                f"{len(self.first)} files of {self.columns[0]} and {len(self.second)} of "
                f"{self.columns[1]}: aligned files come in pairs."
            )

    def rows(self) -> Iterator[Row]:
        """Yield each pair of lines.

        Raises:
            ValueError: One file of a pair has more lines than the other.
        """
        for first, second in zip(self.first, self.second):
            yield from self._pair(first, second)

    def _pair(self, first: Path, second: Path) -> Iterator[Row]:
        sides = [_text_lines(first), _text_lines(second)]
        for number in itertools.count():
            lines = [next(side, None) for side in sides]
            if lines == [None, None]:
                return
            if None in lines:
                counts = [number + (line is not None) for line in lines]
                counts = [n + sum(1 for _ in side) for n, side in zip(counts, sides)]
                raise InvalidValueError(
                    f"{first} has {counts[0]} lines, {second} has {counts[1]}: line i of the one "
                    "must be the translation of line i of the other. Remove or add the lines that "
                    "have no counterpart."
                )
            texts = [line[0] for line in lines if line is not None]
            yield dict(zip(self.columns, texts)), f"{first}:{number + 1}"

    def fingerprint(self, root: Path) -> str:
        """Return a hash of names and contents of the files, in their pairs."""
        sides = [_content(files, root) for files in (self.first, self.second)]
        return content_hash([sides, self.columns])


@dataclass(frozen=True)
class DatasetRows(DatasetSplit):
    """The rows of one split of a Hugging Face dataset."""

    def rows(self) -> Iterator[Row]:
        """Yield all columns of each row."""
        from lightning_llm.interop.hf.datasets import read_rows

        return read_rows(self.path, **self.where())

    def fingerprint(self, root: Path) -> str:
        """Return a hash of the split, as far as its content can be known."""
        return self.content_fingerprint()


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a source.

    Attributes:
        source: All rows.
        limit: How many of them.
    """

    source: RowSource
    limit: int

    def rows(self) -> Iterator[Row]:
        """Yield so many rows."""
        return itertools.islice(self.source.rows(), self.limit)

    def fingerprint(self, root: Path) -> str:
        """Return a hash of the source's and the limit."""
        return content_hash([self.source.fingerprint(root), self.limit])


def field_of(row: dict[str, Any], name: str, where: str, argument: str | None = None) -> Any:
    """Return a field of a row; ``a.b`` is field b of field a, unless a field has that name.

    Args:
        row: The row.
        name: Of the field.
        where: The row's place.
        argument: The argument that gives the name, if one does.

    Raises:
        ValueError: There is no such field; the row's place and its fields are named.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            hint = f" Set {argument} to the one that holds it." if argument else ""
            raise InvalidValueError(
                f"{where}: no field {name!r}; it has {sorted(map(str, row))}.{hint}"
            )
        value = value[part]
    return value


def _content(files: tuple[Path, ...], root: Path) -> str:
    return remembered_fingerprint(files, root, lambda: fingerprint_files(files))


def _text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line without its end, and its place; only LF and CRLF end a line."""
    for line, where, offset in raw_lines(path):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise invalid_utf8(where, error, offset + error.start, choice=False) from None
        yield text.removesuffix("\n").removesuffix("\r"), where


def _read_jsonl(path: Path) -> Iterator[Row]:
    for line, where, offset in raw_lines(path):
        if not line.strip():
            continue
        row = parse_line(line, where, offset, errors=None)
        if not isinstance(row, dict):
            raise InvalidValueError(f"{where}: expected a JSON object, got {type(row).__name__}.")
        yield row, where


def _read_tsv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for number, (line, where) in enumerate(_text_lines(path)):
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise InvalidValueError(
                f"{where}: {len(cells)} columns; expected {len(columns)}, separated by tabs: "
                f"{', '.join(columns)}."
            )
        if number == 0 and cells == list(columns):
            continue  # a header
        yield dict(zip(columns, cells)), where


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with seekable(path) as source:
        try:
            number = 0
            with pq.ParquetFile(source) as file:
                for batch in file.iter_batches(_PARQUET_ROWS, use_threads=False):
                    for row in batch.to_pylist():
                        yield row, f"{path}:row {number}"
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise InvalidValueError(f"{path}: damaged or cut-off Parquet file: {error}") from error


def _read_squad(path: Path) -> Iterator[Row]:
    """Yield question, context and answers of SQuAD's nested layout (Rajpurkar et al., 2016)."""
    with open_bytes(path) as stream:
        content = strip_bom(stream.read())
    try:
        articles = json.loads(content)["data"]
        paragraphs: Iterable[Any] = [p for article in articles for p in article["paragraphs"]]
        rows = [{**qa, "context": p["context"]} for p in paragraphs for qa in p["qas"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidValueError(
            f"{path}: not a SQuAD file ({error!r}): expected {{'data': [{{'paragraphs': "
            "[{'context', 'qas': [{'question', 'answers'}]}]}]}. Other rows go into .jsonl files."
        ) from error
    for number, row in enumerate(rows):
        yield row, f"{path}:question {row.get('id', number)}"
