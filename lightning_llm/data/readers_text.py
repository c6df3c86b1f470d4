"""Plain text: one file is one document, read in bounded pieces."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from lightning_llm.data.file_kinds import HEAD_BYTES, refused_by_content
from lightning_llm.data.file_patterns import shown
from lightning_llm.data.readers_base import (
    PIECE_BYTES,
    DecodeErrors,
    Document,
    SourceStats,
    invalid_utf8,
    open_bytes,
    strip_bom,
)
from lightning_llm.errors import InvalidValueError

_TAIL_BYTES = 1 << 16
# Best first. The second suits tokenizers that keep blank lines together (ours, GPT-4's); GPT-2's
# makes the last line end of several a token of its own.
_CUTS = (re.compile(rb"\S\r?\n(?=\S)"), re.compile(rb"\n(?=\S)"))


def read_text(
    path: Path,
    *,
    errors: DecodeErrors,
    start: int,
    stop: int | None,
    stats: SourceStats,
) -> Iterator[Document]:
    """Yield the file, or its bytes ``[start, stop)``, as one document; nothing if it is empty.

    Raises:
        ValueError: The content is not text, or not UTF-8.
    """
    name = shown(path)
    with open_bytes(path) as stream:
        kind = refused_by_content(stream.read(HEAD_BYTES))
    if errors == "skip" and (kind is not None or not _is_utf8(path, start, stop)):
        stats.skip(name)
        return
    if kind is not None:
        raise InvalidValueError(f"{name}: the content is {kind}")
    pieces = _pieces(path, "replace" if errors == "replace" else "strict", start, stop, stats)
    first = next(pieces, None)
    if first is None:
        stats.empty += 1
        return
    stats.documents += 1
    yield Document(_chain(first, pieces), name)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _is_utf8(path: Path, start: int, stop: int | None) -> bool:
    """Read the range once for its encoding alone: a document is left out whole or not at all."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in _blocks(path, start, stop):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _blocks(path: Path, start: int, stop: int | None) -> Iterator[bytes]:
    with open_bytes(path) as stream:
        if start:
            stream.seek(start)
        left = None if stop is None else max(0, stop - start)
        while block := stream.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES)):
            if left is not None:
                left -= len(block)
            yield block


def _pieces(
    path: Path, errors: str, start: int, stop: int | None, stats: SourceStats
) -> Iterator[str]:
    line, offset = 1, start  # of the first byte of `held`; lines counted from `start`
    held = b""
    fresh = start == 0
    blocks = _blocks(path, start, stop)
    final = False
    while not final:
        block = next(blocks, None)
        # A block is a full read: a short one is the last, and all of a small file one piece.
        final = block is None or (not held and offset == start and len(block) < PIECE_BYTES)
        if block:
            if fresh:
                # Three bytes of mark are never split.
                stripped = strip_bom(block)
                offset += len(block) - len(stripped)
                block, fresh = stripped, False
            held += block
        end = len(held) if final else _cut(held)
        try:
            text, used = codecs.utf_8_decode(held[:end], errors, final)
        except UnicodeDecodeError as error:
            line += held.count(b"\n", 0, error.start) + _lines_before(path, start)
            raise invalid_utf8(f"{shown(path)}:{line}", error, offset + error.start) from None
        line += held.count(b"\n", 0, used)
        offset += used
        stats.bytes += used
        held = held[used:]
        if text:
            yield text


def _lines_before(path: Path, start: int) -> int:
    return sum(block.count(b"\n") for block in _blocks(path, 0, start)) if start else 0


def _cut(held: bytes) -> int:
    """Return how much of the bytes to hand on, so that tokens rarely depend on the cut.

    Before a line that is not indented, tokenizers split anyway; else the last line end, else the
    last space, else everything.
    """
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(held, max(0, len(held) - _TAIL_BYTES))]
        if ends:
            return ends[-1]
    half = len(held) // 2
    return held.rfind(b"\n", half) + 1 or held.rfind(b" ", half) + 1 or len(held)


def split_file_range(path: Path, fraction: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Cut a plain-text file in two byte ranges at a character boundary.

    Args:
        path: An uncompressed plain-text file.
        fraction: Share of the bytes in the first range; on ASCII text the cut is that of
            ``text[: int(fraction * len(text))]``.

    Returns:
        ``((0, cut), (cut, size))``, to be given to ``read_documents`` as ``start`` and ``stop``.

    Raises:
        ValueError: ``fraction`` is not within 0 to 1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction={fraction} must be between 0 and 1.")
    with open(path, "rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        cut = int(fraction * size)
        stream.seek(max(0, cut - 3))
        window = stream.read(cut - stream.tell() + 1)
    # Step back over continuation bytes (10xxxxxx) to the byte that starts the character.
    if cut < size:
        while len(window) > 1 and window[-1] & 0xC0 == 0x80:
            window, cut = window[:-1], cut - 1
    return (0, cut), (cut, size)
