"""Rows of named fields: JSON lines, Parquet, tables, aligned files, datasets.

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
from lightning_llm.data.file_kinds import JSON_LINES, TABLES, layout_of, refused_by_name
from lightning_llm.data.file_patterns import shown
from lightning_llm.data.readers_base import invalid_utf8, open_bytes, strip_bom
from lightning_llm.data.readers_csv import decode_cell, table_rows
from lightning_llm.data.readers_rows import (
    damaged_parquet,
    is_json_lines,
    parse_line,
    raw_lines,
    seekable,
)
from lightning_llm.data.sources import fingerprint_files
from lightning_llm.errors import InvalidValueError

Row = tuple[dict[str, Any], str]
_PARQUET_ROWS = 256
_OR_SQUAD = " or in SQuAD's layout"


class BadRow(dict[str, Any]):
    """Stands for a row that cannot be read, so that the rows behind it still can.

    Args:
        error: What is wrong with it.
    """

    def __init__(self, error: InvalidValueError) -> None:
        super().__init__()
        self.error = error


class ArrowRow(dict[str, Any]):
    """A row of Parquet or of a dataset, whose objects have every field of their column.

    What an object does not have is null in it: there is no telling the one from the other.
    """


def readable(row: Row) -> Row:
    """Return a row.

    Raises:
        ValueError: It could not be read.
    """
    if isinstance(row[0], BadRow):
        raise row[0].error
    return row


class RowSource(Protocol):
    """A repeatable stream of rows."""

    def rows(self) -> Iterator[Row]:
        """Yield each row and where it is from, always in the same order; see also `BadRow`."""

    def fingerprint(self, root: Path) -> str:
        """Return a hash that changes with the content; ``root`` is the cache."""


@dataclass(frozen=True)
class FileRows:
    """The rows of ``.jsonl``, ``.parquet``, ``.csv`` and ``.tsv`` files, and of SQuAD's ``.json``.

    Attributes:
        files: As `lightning_llm.data.sources.expand_files` returns them.
        columns: Names of the columns of a ``.tsv`` file without a header, in order.
        squad: Whether a ``.json`` file that is no JSON lines is one in the layout of SQuAD.
        needed: Columns that the header of a table must name.
    """

    files: tuple[Path, ...]
    columns: tuple[str, ...] = ()
    squad: bool = False
    needed: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the files, one after the other."""
        return itertools.chain.from_iterable(self._read(file) for file in self.files)

    def fingerprint(self, root: Path) -> str:
        """Return a hash of names and contents of the files and how they are read."""
        return content_hash([_content(self.files, root), self.columns, self.squad])

    def _read(self, path: Path) -> Iterator[Row]:
        if (refused := refused_by_name(path)) is not None:
            raise InvalidValueError(f"{shown(path)}: {refused}")
        kind = layout_of(path)
        if kind in JSON_LINES:
            return _read_jsonl(path)
        if kind == ".parquet":
            return _read_parquet(path)
        if kind == ".csv" or (kind == ".tsv" and not self._is_bare(path)):
            return _read_table(path, self.needed)
        if kind == ".tsv":
            return _read_tsv(path, self.columns)
        if kind == ".json":
            if self.squad and _is_squad(path):
                return _read_squad(path)
            if is_json_lines(path):
                return _read_jsonl(path)
            raise InvalidValueError(
                f"{shown(path)}: its first line is no whole JSON object, and a .json file is read "
                "only if it holds one object a line. `jq -c '.[]'` turns a list into that."
            )
        raise InvalidValueError(
            f"{shown(path)}: rows are read from .jsonl, .parquet, .csv and .tsv files, and from "
            f".json files of one object a line{_OR_SQUAD * self.squad}, not {kind!r}."
        )

    def _is_bare(self, path: Path) -> bool:
        """Tell whether a ``.tsv`` file has no header, or none but the names of its two sides.

        Such files are those of parallel corpora, and quotes in them are text.
        """
        if not self.columns:
            return False
        first = next(raw_lines(path), None)
        cells = [] if first is None else _text(*first).split("\t")
        return cells == list(self.columns) or not set(self.columns) <= set(cells)


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
        for path in (*self.first, *self.second):
            if layout_of(path) in (*JSON_LINES, *TABLES, ".parquet"):
                raise InvalidValueError(
                    f"{shown(path)}: aligned files hold one text a line. A file of rows with both "
                    "fields is given as train_files, val_files or test_files."
                )

    def rows(self) -> Iterator[Row]:
        """Yield each pair of lines.

        Raises:
            ValueError: One file of a pair has more lines than the other.
        """
        for first, second in zip(self.first, self.second):
            yield from self._pair(first, second)

    def _pair(self, first: Path, second: Path) -> Iterator[Row]:
        sides = [raw_lines(first), raw_lines(second)]
        for number in itertools.count():
            lines = [next(side, None) for side in sides]
            if lines == [None, None]:
                return
            if None in lines:
                counts = [number + (line is not None) for line in lines]
                counts = [n + sum(1 for _ in side) for n, side in zip(counts, sides)]
                raise InvalidValueError(
                    f"{shown(first)} has {counts[0]} lines, {shown(second)} has {counts[1]}: line "
                    "i of the one "
                    "must be the translation of line i of the other. Remove or add the lines that "
                    "have no counterpart."
                )
            where = f"{shown(first)}:{number + 1}"
            try:
                texts = [_text(*line) for line in lines if line is not None]
            except InvalidValueError as error:
                yield BadRow(error), where
            else:
                yield dict(zip(self.columns, texts)), where

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

        rows = read_rows(self.path, **self.where())
        return ((ArrowRow(row), where) for row, where in rows)

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


def _text(line: bytes, where: str, offset: int) -> str:
    """Return a line without its end; only LF and CRLF end a line."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise invalid_utf8(where, error, offset + error.start, choice=False) from None
    return text.removesuffix("\n").removesuffix("\r")


def _read_jsonl(path: Path) -> Iterator[Row]:
    for line, where, offset in raw_lines(path):
        if not line.strip():
            continue
        try:
            row = parse_line(line, where, offset, errors=None)
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise InvalidValueError(f"{where}: expected a JSON object, got {kind}.")
        except InvalidValueError as error:
            row = BadRow(error)
        yield row, where


def _read_tsv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for number, (line, where, offset) in enumerate(raw_lines(path)):
        try:
            cells = _text(line, where, offset).split("\t")
            if len(cells) != len(columns):
                raise InvalidValueError(
                    f"{where}: {len(cells)} columns; expected {len(columns)}, separated by tabs: "
                    f"{', '.join(columns)}."
                )
        except InvalidValueError as error:
            yield BadRow(error), where
            continue
        if number == 0 and cells == list(columns):
            continue  # a header
        yield dict(zip(columns, cells)), where


def _read_table(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    row: dict[str, Any]
    for cells, where in table_rows(path, needed, instead=BadRow):
        if isinstance(cells, BadRow):
            yield cells, where
            continue
        try:
            row = {name: decode_cell(cell, name, where, None) for name, cell in cells.items()}
        except InvalidValueError as error:
            row = BadRow(error)
        yield row, where


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with seekable(path) as source:
        try:
            number = 0
            with pq.ParquetFile(source) as file:
                for batch in file.iter_batches(_PARQUET_ROWS, use_threads=False):
                    for row in _python_rows(batch, shown(path), number):
                        where = f"{shown(path)}:row {number}"
                        yield ArrowRow(_as_text(row)), where
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise damaged_parquet(path, error) from error


def _python_rows(batch: Any, name: str, first: int) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # which does not say where
        for number in range(batch.num_rows):
            try:
                batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                where = f"{name}:row {first + number}"
                raise invalid_utf8(where, error, choice=False) from None
        raise


def _as_text(value: Any) -> Any:
    """Return a value of Parquet with its binary strings as text where they are UTF-8.

    Others stay bytes: an image beside the text does not matter, and as a text they are refused.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return value


def _is_squad(path: Path) -> bool:
    """Tell whether a ``.json`` file begins with an object that is more than its first line.

    SQuAD's files are one object, often on one line; that one has the key ``data``.
    """
    if not is_json_lines(path):
        return True
    line, where, offset = next(line for line in raw_lines(path) if line[0].strip())
    return "data" in parse_line(line, where, offset, errors=None)


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
            f"{shown(path)}: not a SQuAD file ({error!r}): expected {{'data': [{{'paragraphs': "
            "[{'context', 'qas': [{'question', 'answers'}]}]}]}. Other rows go into .jsonl files."
        ) from error
    for number, row in enumerate(rows):
        yield row, f"{shown(path)}:question {row.get('id', number)}"
