"""Words and their vectors from GloVe text, word2vec text and word2vec binary files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from lightning_llm.errors import InvalidValueError

_BLOCK_BYTES = 1 << 20
_BATCH = 4096
_LONGEST_WORD = 4096  # bytes; a binary file without a space for so long is none
_LONGEST_LINE = 1 << 24


class Words(NamedTuple):
    """A batch of words.

    Attributes:
        words: As UTF-8, in the order of the file.
        vectors: ``(len(words), width) float32``.
    """

    words: list[bytes]
    vectors: npt.NDArray[np.float32]


def read_word_vectors(path: str | Path) -> Iterator[Words]:
    """Yield the words of a file in batches, in bounded memory.

    The format is seen from the content: word2vec's files begin with a line of two numbers, the
    words and the width, and hold text or 32-bit floats; GloVe's have no such line. A word may
    contain spaces, as some of GloVe's do. ``.gz`` is decompressed.

    Args:
        path: The file.

    Raises:
        ValueError: It is malformed; the message names the line, or the byte in a binary file.
        FileNotFoundError: There is no such file.
    """
    path = Path(path).expanduser()
    with _opened(path) as stream:
        first = stream.readline(_LONGEST_LINE)
        if not first.strip():
            raise InvalidValueError(f"{path}:1: expected a word and its vector, got an empty line.")
        header = _header(first)
        if header is None:
            yield from _batches(_text(path, stream, first, 1, len(first.split()) - 1))
            return
        count, width = header
        if count < 1 or width < 1:
            raise InvalidValueError(f"{path}:1: the header says {count} words of width {width}.")
        head = stream.peek(_BLOCK_BYTES)[: 64 * width]  # type: ignore[attr-defined]
        if _is_text(head, width):
            entries = _text(path, stream, stream.readline(_LONGEST_LINE), 2, width)
        else:
            entries = _binary(path, stream, len(first), count, width)
        read = 0
        for batch in _batches(entries):
            read += len(batch.words)
            yield batch
        if read != count:
            raise InvalidValueError(f"{path}: the header says {count} words, the file has {read}.")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb", buffering=_BLOCK_BYTES) as raw:
        if path.suffix != ".gz":
            yield raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield cast(BinaryIO, stream)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidValueError(f"{path}: damaged or cut-off .gz file: {error}") from error


def _header(line: bytes) -> tuple[int, int] | None:
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1])
    return None


def _is_text(head: bytes, width: int) -> bool:
    """Tell text from 32-bit floats by the fields behind the first word."""
    line = head.partition(b"\n")[0]
    fields = line.split(b" ")[1 : 1 + min(width, 3)]
    try:
        return bool(fields) and all(math.isfinite(float(field)) for field in fields)
    except ValueError:
        return False


def _text(
    path: Path, stream: BinaryIO, first: bytes, number: int, width: int
) -> Iterator[tuple[bytes, npt.NDArray[np.float32]]]:
    line = first
    while line:
        fields = line.rstrip(b" \r\n").rsplit(b" ", width) if width > 0 else []
        if len(fields) != width + 1 or not fields[0]:
            got = len(line.split()) - 1
            raise InvalidValueError(
                f"{path}:{number}: expected a word and {width} numbers, got {got}."
            )
        try:
            vector = np.array([float(field) for field in fields[1:]], np.float32)
        except ValueError as error:
            raise InvalidValueError(f"{path}:{number}: {error}.") from None
        if not np.isfinite(vector).all():
            raise InvalidValueError(f"{path}:{number}: the vector of {fields[0]!r} is not finite.")
        yield fields[0], vector
        line = stream.readline(_LONGEST_LINE)
        number += 1


def _binary(
    path: Path, stream: BinaryIO, offset: int, count: int, width: int
) -> Iterator[tuple[bytes, npt.NDArray[np.float32]]]:
    buffer, start = b"", 0

    def more() -> bool:
        nonlocal buffer, start, offset
        block = stream.read(_BLOCK_BYTES)
        offset, buffer, start = offset + start, buffer[start:] + block, 0
        return bool(block)

    for index in range(count):
        while (space := buffer.find(b" ", start, start + _LONGEST_WORD)) < 0:
            if len(buffer) - start > _LONGEST_WORD:
                raise InvalidValueError(f"{path}: byte {offset + start}: no word begins here.")
            if not more():
                raise InvalidValueError(
                    f"{path}: cut off: {index} of {count} words before its end."
                )
        word = buffer[start:space].lstrip(b"\n")
        size = space + 1 - start + 4 * width
        while len(buffer) - start < size:
            if not more():
                raise InvalidValueError(
                    f"{path}: byte {offset + start}: cut off within the vector of {word!r}."
                )
        vector = np.frombuffer(buffer, "<f4", width, start + size - 4 * width)
        if not word or not np.isfinite(vector).all():
            raise InvalidValueError(
                f"{path}: byte {offset + start}: expected a word and {width} finite floats, got "
                f"{word!r} and others."
            )
        yield word, vector.astype(np.float32)
        start += size
    if (buffer[start:] + stream.read(1)).strip():
        raise InvalidValueError(
            f"{path}: byte {offset + start}: more than the {count} words it names."
        )


def _batches(entries: Iterator[tuple[bytes, npt.NDArray[np.float32]]]) -> Iterator[Words]:
    words: list[bytes] = []
    vectors: list[npt.NDArray[np.float32]] = []
    for word, vector in entries:
        words.append(word)
        vectors.append(vector)
        if len(words) == _BATCH:
            yield Words(words, np.stack(vectors))
            words, vectors = [], []
    if words:
        yield Words(words, np.stack(vectors))
