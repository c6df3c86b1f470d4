"""What every reader shares: the document it yields, its counters, its decoding, its byte stream."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning_llm.errors import InvalidValueError, LightningLLMError

DecodeErrors = Literal["strict", "replace", "skip"]
"""What to do with text that is not valid Unicode: stop, put U+FFFD in its place, or leave the
document out and count it."""

PIECE_BYTES = 1 << 20
"""Size aimed at for one piece of a document: enough for full speed, small in memory."""

_BOM = b"\xef\xbb\xbf"
_JUDGED_BYTES = 1 << 16  # of a text that is not UTF-8, to tell what it is
# One call of the decompressor may expand its input some 32,000 times: small reads bound the output.
_ZSTD_READ_BYTES = 1 << 11


class Document(NamedTuple):
    """One text of the corpus.

    Attributes:
        pieces: The text in order, in pieces of about 1 MiB, none above 4 MiB. It may be a one-pass
            iterator that reads the file: use it up before asking for the next document.
        source: Where the text is from, for messages: ``file``, ``file:line`` or ``file:row N``
            (lines count from 1, rows from 0).
    """

    pieces: Iterable[str]
    source: str


@dataclass
class SourceStats:
    """Running counts of what the readers met.

    Attributes:
        documents: Documents yielded.
        empty: Documents left out because they held no text.
        skipped: Documents left out by ``errors="skip"``.
        first_skipped: Where the first of them is.
        bytes: UTF-8 bytes of the documents yielded.
    """

    documents: int = 0
    empty: int = 0
    skipped: int = 0
    bytes: int = 0
    first_skipped: str | None = field(default=None, compare=False)

    def skip(self, where: str) -> None:
        """Count a document that is left out."""
        self.skipped += 1
        self.first_skipped = self.first_skipped or where


class InvalidTextError(LightningLLMError, ValueError):
    """Text that is not valid Unicode, with its place in the message."""


def strip_bom(head: bytes) -> bytes:
    """Return the first bytes of a file without a UTF-8 byte-order mark."""
    return head.removeprefix(_BOM)


def invalid_utf8(
    where: str, error: UnicodeDecodeError, offset: int | None = None, *, choice: bool = True
) -> Exception:
    """Build the error for bytes that are not UTF-8.

    Args:
        where: ``file:line`` or ``file:row N``.
        error: What the decoder raised.
        offset: Byte offset of the bad byte in the (decompressed) file, where it is known.
        choice: Whether the reader's user has an argument ``errors``.
    """
    remedy = (
        ', or use errors="replace" to put U+FFFD in its place or errors="skip" to leave the '
        "document out."
    )
    bad = error.object[error.start : error.start + 1].hex()
    place = f" at byte offset {offset}" if offset is not None else ""
    return InvalidTextError(
        f"{where}: invalid UTF-8 byte 0x{bad}{place} ({error.reason}). "
        f"{_other_encoding(error, offset)} to UTF-8{remedy if choice else '.'}"
    )


def _other_encoding(error: UnicodeDecodeError, offset: int | None) -> str:
    """Say what to convert, with the encoding where the bytes tell it."""
    content = error.object
    if offset == 0 and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "The file looks like UTF-16: convert it"
    unknown = "If the text has another encoding, convert it"
    # Three bytes of UTF-8 in a row are hardly ever something else: this is damage to such text.
    if any(ord(character) >= 0x800 for character in content[: error.start].decode()):
        return unknown
    try:
        codecs.getincrementaldecoder("gb18030")().decode(content[:_JUDGED_BYTES])
    except UnicodeDecodeError:
        return unknown
    # Big5 mostly passes for GB18030, so both are named.
    return "The text may be GB18030 (GBK) or Big5: convert it, as `iconv -f GB18030` does,"


def check_text(value: Any, key: str, where: str, errors: DecodeErrors) -> str:
    """Return ``value`` if it is text that UTF-8 can represent.

    Raises:
        ValueError: It is null or not a string; ``where`` and ``key`` are named.
        InvalidTextError: It holds half of a surrogate pair (JSON's ``"\\ud800"``).
    """
    if not isinstance(value, str):
        got = "null" if value is None else type(value).__name__
        raise InvalidValueError(f"{where}: {key!r}: expected a string, got {got}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if errors == "replace":
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        code = ord(value[error.start])
        raise InvalidTextError(
            f"{where}: {key!r}: character {error.start} is the lone surrogate \\u{code:04x}, which "
            'is not text. Use errors="replace" to put U+FFFD in its place or errors="skip" to '
            "leave the document out."
        ) from None
    return value


def cut_text(text: str, at_most: int) -> Iterator[str]:
    """Yield a text already in memory in pieces of at most so many characters.

    The cut falls after a line end where there is one, else after a space, else anywhere.
    """
    start = 0
    while len(text) - start > at_most:
        limit = start + at_most
        cut = text.rfind("\n", start, limit) + 1 or text.rfind(" ", start, limit) + 1 or limit
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a Zstandard file, of any number of frames; cut off is an error."""

    def __init__(self, raw: io.BufferedReader) -> None:
        try:
            import zstandard
        except ImportError:
            raise InvalidValueError(
                f"{raw.name}: reading .zst files needs the zstandard package: "
                "pip install 'lightning-llm[zstd]'"
            ) from None
        self._raw = raw
        # Public dumps are often written with `zstd --long=31`, over the library's default limit.
        self._codec = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._pending = b""
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            data = self._pending or self._raw.read(_ZSTD_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            if self._frame is None:
                self._frame = self._codec.decompressobj()
            self._out = memoryview(self._frame.decompress(data))
            self._pending = b""
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        self._out = self._out[count:]
        return count


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, decompressing ``.gz`` and ``.zst`` on the way.

    Raises:
        ValueError: The compressed data is damaged or cut off, or the codec is not installed.
    """
    suffix = path.suffix.lower()
    with open(path, "rb") as raw:
        if suffix not in (".gz", ".zst"):
            yield raw
            return
        if os.fstat(raw.fileno()).st_size == 0:
            raise InvalidValueError(f"{path}: not a {suffix} file: it has no bytes at all.")
        damaged: tuple[type[BaseException], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
        if suffix == ".gz":
            stream: io.BufferedIOBase = gzip.GzipFile(fileobj=raw)
        else:
            zstd = _ZstdStream(raw)
            stream = io.BufferedReader(zstd, PIECE_BYTES)
            damaged = (EOFError, zstd._error)
        try:
            with stream:
                yield stream
        except damaged as error:
            raise InvalidValueError(
                f"{path}: damaged or cut-off {suffix} file: {error}. Get the file again."
            ) from error
