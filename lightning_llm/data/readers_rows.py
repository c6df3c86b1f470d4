"""JSON lines and Parquet: one line or row is one document."""

from __future__ import annotations

import difflib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_llm.data.file_kinds import (
    COMPRESSED,
    HEAD_BYTES,
    refused_by_content,
)
from lightning_llm.data.file_patterns import shown
from lightning_llm.data.readers_base import (
    PIECE_BYTES,
    DecodeErrors,
    Document,
    InvalidTextError,
    SourceStats,
    check_text,
    cut_text,
    invalid_utf8,
    open_bytes,
    strip_bom,
)
from lightning_llm.errors import InvalidValueError

MAX_LINE_BYTES = 1 << 30
_PARQUET_ROWS = 256


def missing_field(
    where: str, key: str, available: Iterable[str], kind: str, argument: str | None = "text_field"
) -> InvalidValueError:
    """Build the error for a text field that is not there, with the nearest name that is."""
    names = [str(name) for name in available]
    near = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    remedy = f" Set {argument} to the one that holds the text." if argument else ""
    listed = ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")
    return InvalidValueError(
        f"{where}: no {kind} {key!r}; it has {listed or 'none'}.{hint}{remedy}"
    )


def emit(text: str, source: str, stats: SourceStats) -> Iterator[Document]:
    """Yield a text as a document and count it; an empty one is only counted."""
    if not text:
        stats.empty += 1
        return
    stats.documents += 1
    stats.bytes += len(text.encode())
    yield Document(cut_text(text, PIECE_BYTES), source)


def read_jsonl(
    path: Path, *, text_field: str, errors: DecodeErrors, stats: SourceStats
) -> Iterator[Document]:
    """Yield ``text_field`` of every line; blank lines are no documents.

    Raises:
        ValueError: A line is no JSON object or its text is missing or not a string, with
            ``file:line`` and the key.
    """
    for line, where, offset in raw_lines(path):
        if not line.strip():
            continue
        try:
            row = parse_line(line, where, offset, errors)
            text = check_text(nested_field(row, text_field, where), text_field, where, errors)
        except InvalidTextError:
            if errors != "skip":
                raise
            stats.skip(where)
        else:
            yield from emit(text, where, stats)


def raw_lines(path: Path) -> Iterator[tuple[bytes, str, int]]:
    """Yield each line as bytes with its end, its place (``file:line``), and its byte offset.

    Raises:
        ValueError: The file begins like a binary one, or a line is longer than ``MAX_LINE_BYTES``.
    """
    offset = 0
    name = shown(path)
    with open_bytes(path) as stream:
        if (kind := refused_by_content(stream.read(HEAD_BYTES))) is not None:
            raise InvalidValueError(f"{name}: the content is {kind}")
    with open_bytes(path) as stream:
        for number, raw in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), 1):
            where = f"{name}:{number}"
            if len(raw) == MAX_LINE_BYTES:
                raise InvalidValueError(f"{where}: the line is longer than {MAX_LINE_BYTES} bytes.")
            line = strip_bom(raw) if number == 1 else raw
            yield line, where, offset + len(raw) - len(line)
            offset += len(raw)


def parse_line(line: bytes, where: str, offset: int, errors: DecodeErrors | None) -> Any:
    """Return the JSON value of a line.

    Args:
        line: The line.
        where: Its place.
        offset: Of the line in its file.
        errors: What to do with bytes that are not UTF-8; None where nobody can choose: refused.

    Raises:
        ValueError: It is no JSON, or not UTF-8; ``where`` is named.
    """
    try:
        decoded = line.rstrip().decode("utf-8", "replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as error:
        choice = errors is not None
        raise invalid_utf8(where, error, offset + error.start, choice=choice) from None
    try:
        return json.loads(decoded)
    except json.JSONDecodeError as error:
        raise InvalidValueError(
            f"{where}: not valid JSON: {error.msg} at column {error.pos + 1}. Expected one JSON "
            f"object a line, got {decoded[:60]!r}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{where}: not readable as JSON: {error}.") from None


def nested_field(row: Any, key: str, where: str, kind: str = "key") -> Any:
    """Return a field of a row; ``a.b`` is field b of field a, unless a field has that name.

    Raises:
        ValueError: There is no such field, or a field on the way holds no fields.
    """
    if not isinstance(row, dict):
        raise InvalidValueError(f"{where}: expected a JSON object, got {type(row).__name__}.")
    if key in row:
        return row[key]
    value: Any = row
    done: list[str] = []
    for part in key.split("."):
        if not isinstance(value, dict):
            got = "null" if value is None else type(value).__name__
            raise InvalidValueError(
                f"{where}: {key!r}: {'.'.join(done)!r} holds no fields: expected an object, got "
                f"{got}."
            )
        if part not in value:
            within = f"{where}: within {'.'.join(done)!r}" if done else where
            raise missing_field(within, part if done else key, value, kind)
        value = value[part]
        done.append(part)
    return value


def is_json_lines(path: Path) -> bool:
    """Tell whether a ``.json`` file holds one object a line, as dumps by the name ``.json.gz`` do.

    Its first line that is not blank has to be a whole object with at least one field.
    """
    for line, _, _ in raw_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(row, dict) and bool(row)
    return False


def read_parquet(
    path: Path, *, text_field: str, errors: DecodeErrors, stats: SourceStats
) -> Iterator[Document]:
    """Yield ``text_field`` of every row, reading that column alone, a few rows at a time.

    Raises:
        ValueError: The file is damaged, the column missing or not of strings, or a row null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with seekable(path) as source:
        try:
            with pq.ParquetFile(source, buffer_size=1 << 20) as file:
                parts = _check_column(file.schema_arrow, text_field, shown(path))
                for number, value in enumerate(_column_values(file, text_field, parts)):
                    where = f"{shown(path)}:row {number}"
                    try:
                        text = _decode_row(value, text_field, where, errors)
                    except InvalidTextError:
                        if errors != "skip":
                            raise
                        stats.skip(where)
                    else:
                        yield from emit(text, where, stats)
        except (pa.ArrowException, OSError) as error:
            raise damaged_parquet(path, error) from error


def damaged_parquet(path: Path, error: Exception) -> InvalidValueError:
    """Build the error for a file that is no whole Parquet file, or none at all."""
    with open_bytes(path) as stream:
        kind = refused_by_content(stream.read(HEAD_BYTES))
    if kind is not None and not kind.what.startswith("a Parquet"):
        return InvalidValueError(
            f"{shown(path)}: damaged or cut-off Parquet file, or none: the content is {kind}"
        )
    return InvalidValueError(f"{shown(path)}: damaged or cut-off Parquet file: {error}")


@contextmanager
def seekable(path: Path) -> Iterator[Any]:
    """Give Parquet, whose index is at its end, a file to seek in, though it be compressed."""
    if path.suffix.lower() not in COMPRESSED:
        with open(path, "rb") as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as spool:
        with open_bytes(path) as stream:
            shutil.copyfileobj(stream, spool, 1 << 20)
        spool.seek(0)
        yield spool


def _check_column(schema: Any, key: str, where: str) -> list[str]:
    """Return the names that lead to the column of a text: one, or more if it is in a struct."""
    import pyarrow as pa

    parts = [key] if key in schema.names else key.split(".")
    if schema.names.count(parts[0]) > 1:
        raise InvalidValueError(f"{where}: there are several columns {parts[0]!r}.")
    if parts[0] not in schema.names:
        raise missing_field(where, key, schema.names, "column")
    kind = schema.field(parts[0]).type
    for done, part in enumerate(parts[1:], 1):
        before = ".".join(parts[:done])
        if not pa.types.is_struct(kind):
            raise InvalidValueError(
                f"{where}: column {key!r}: {before!r} holds no fields: expected a struct, got "
                f"{kind}."
            )
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if part not in names:
            raise missing_field(f"{where}: within {before!r}", part, names, "field")
        kind = kind.field(part).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    # A type that this release of Arrow does not know cannot be that of a file either.
    if not any(getattr(pa.types, f"is_{test}", lambda kind: False)(kind) for test in tests):
        raise InvalidValueError(f"{where}: column {key!r}: expected strings, got {kind}.")
    return parts


def _column_values(file: Any, key: str, parts: list[str]) -> Iterator[bytes | None]:
    """Yield undecoded values: Arrow's own conversion to str would name neither file nor row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in file.iter_batches(_PARQUET_ROWS, columns=[key], use_threads=False):
        column = batch.column(parts[0])
        for part in parts[1:]:
            column = pc.struct_field(column, part)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        yield from column.cast(pa.large_binary()).to_pylist()


def _decode_row(value: bytes | None, key: str, where: str, errors: DecodeErrors) -> str:
    if value is None:
        raise InvalidValueError(f"{where}: {key!r}: expected a string, got null.")
    try:
        return value.decode("utf-8", "replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as error:
        raise invalid_utf8(f"{where}: {key!r}", error) from None
