"""Comma- and tab-separated tables: one row is one document, or one row of named fields."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lightning_llm.data.file_kinds import layout_of
from lightning_llm.data.file_patterns import shown
from lightning_llm.data.readers_base import (
    DecodeErrors,
    Document,
    InvalidTextError,
    SourceStats,
    invalid_utf8,
)
from lightning_llm.data.readers_rows import emit, missing_field, raw_lines
from lightning_llm.errors import InvalidValueError

MAX_CELL_CHARACTERS = 1 << 30
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

TableRow = tuple[dict[str, str], str]


def read_csv(
    path: Path, *, text_field: str, errors: DecodeErrors, stats: SourceStats
) -> Iterator[Document]:
    """Yield the column ``text_field`` of every row.

    Raises:
        ValueError: There is no such column in the header, or a row is malformed; file and line
            are named.
    """
    for row, where in table_rows(path, [text_field], "text_field"):
        try:
            text = decode_cell(row[text_field], text_field, where, errors)
        except InvalidTextError:
            if errors != "skip":
                raise
            stats.skip(where)
        else:
            yield from emit(text, where, stats)


def table_rows(
    path: Path,
    needed: Sequence[str],
    argument: str | None = None,
    instead: Callable[[InvalidValueError], dict[str, str]] | None = None,
) -> Iterator[TableRow]:
    """Yield each row below the header as cells by column, and the place of its first line.

    Quoting is that of RFC 4180: a cell in double quotes may hold delimiters, line ends and doubled
    quotes. ``.csv`` is separated by commas and ``.tsv`` by tabs, unless the header names the
    needed columns only when it is cut at semicolons, tabs or vertical bars. Blank lines are no
    rows. Bytes that are not UTF-8 come as surrogates, see `decode_cell`.

    Args:
        path: The file, compressed or not.
        needed: Columns that must be there.
        argument: The argument that names them, if it is one.
        instead: What to yield for a row with a wrong number of cells; by default it is an error.

    Raises:
        ValueError: A column is missing or twice, or a row has not as many cells as the header.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        return
    name = shown(path)
    delimiter = _delimiter(path, first, needed)
    # A limit of the whole process, and by default shorter than a long document.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    start = 1

    def following() -> Iterator[list[str]]:
        nonlocal start
        while True:
            start = rows.line_num + 1
            try:
                yield next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise _malformed(f"{name}:{start}", str(error), rows.line_num, start) from None

    header: list[str] | None = None
    for cells in following():
        where = f"{name}:{start}"
        if not cells:
            continue
        if header is None:
            header = cells
            _check_header(header, needed, argument, where, delimiter)
        elif len(cells) != len(header):
            error = InvalidValueError(
                f"{where}: {len(cells)} cells; the header names {len(header)} columns, separated "
                f"by {_DELIMITERS[delimiter]}. Put a cell that holds the delimiter, a line end or "
                "a quote in double quotes, with each quote in it doubled."
            )
            if instead is None:
                raise error
            yield instead(error), where
        else:
            yield dict(zip(header, cells)), where


def _lines(path: Path) -> Iterator[str]:
    for line, _, _ in raw_lines(path):
        yield line.decode("utf-8", "surrogateescape")


def _delimiter(path: Path, header: str, needed: Sequence[str]) -> str:
    """Return the delimiter of the suffix, unless the header has the columns under another alone."""
    usual = "\t" if layout_of(path) == ".tsv" else ","
    for delimiter in (usual, *_DELIMITERS):
        try:
            cells = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if all(column in cells for column in needed):
            return delimiter
    return usual


def _check_header(
    header: list[str], needed: Sequence[str], argument: str | None, where: str, delimiter: str
) -> None:
    for column in needed:
        if column not in header:
            error = missing_field(where, column, header, "column", argument)
            raise InvalidValueError(
                f"{error} The first line must name the columns, separated by "
                f"{_DELIMITERS[delimiter]}."
            )
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice and (not needed or set(twice) & set(needed)):
        raise InvalidValueError(
            f"{where}: the column {twice[0]!r} is in the header more than once; rename one of them."
        )


def _malformed(where: str, said: str, line: int, start: int) -> InvalidValueError:
    if "limit" in said:
        said = f"a cell of more than {MAX_CELL_CHARACTERS} characters"
    elif "new-line character" in said:
        said = "a carriage return alone ends a line; only LF and CRLF do"
    opened = (
        f" The row runs to line {line}, as by a double quote that is never closed."
        if line > start
        else ""
    )
    return InvalidValueError(
        f"{where}: malformed row: {said}.{opened} A cell that begins with a double quote ends at "
        "the next single one; quotes within are doubled. Text with quotes as they come goes into "
        ".jsonl files."
    )


def decode_cell(cell: str, column: str, where: str, errors: DecodeErrors | None) -> str:
    """Return a cell as text, with its bytes that are not UTF-8 treated as ``errors`` says.

    Args:
        cell: As `table_rows` yields it.
        column: Its name.
        where: Its place.
        errors: None where nobody can choose: refused.

    Raises:
        InvalidTextError: It is not UTF-8.
    """
    try:
        cell.encode()
    except UnicodeEncodeError:
        content = cell.encode("utf-8", "surrogateescape")
        try:
            return content.decode("utf-8", "replace" if errors == "replace" else "strict")
        except UnicodeDecodeError as error:
            raise invalid_utf8(f"{where}: {column!r}", error, choice=errors is not None) from None
    return cell
