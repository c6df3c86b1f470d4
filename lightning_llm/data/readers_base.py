"""What every reader shares: the document it yields, its counters, its decoding, its byte stream."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning_llm.data.file_kinds import COMPRESSED, refused_by_content
from lightning_llm.data.foreign_encodings import guess_encoding
from lightning_llm.errors import InvalidValueError, MissingPackageError

DecodeErrors = Literal["strict", "replace", "skip"]
"""What to do with text that is not valid Unicode: stop, put U+FFFD in its place, or leave the
document out and count it."""

PIECE_BYTES = 1 << 20
"""Size aimed at for one piece of a document: enough for full speed, small in memory."""

_BOM = b"\xef\xbb\xbf"
# One call of the decompressor may expand its input some 32,000 times: small reads bound the output.
_ZSTD_READ_BYTES = 1 << 11
_READ_BYTES = 1 << 16


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


class InvalidTextError(InvalidValueError):
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
    bad = error.object[error.start : error.start + 1].hex()
    place = f" at byte offset {offset}" if offset is not None else ""
    return InvalidTextError(
        f"{where}: invalid UTF-8 byte 0x{bad}{place} ({error.reason}). "
        f"{_remedy(error, offset, choice)}"
    )


def _remedy(error: UnicodeDecodeError, offset: int | None, choice: bool) -> str:
    """Say what to do, with the kind of file or the encoding where the bytes tell it."""
    content = error.object
    kind = refused_by_content(content) if offset == error.start else None
    if kind is not None:
        return f"The file is {kind}"
    or_else = (
        ', or use errors="replace" to put U+FFFD in its place or errors="skip" to leave the '
        "document out."
        if choice
        else "."
    )
    # Three bytes of UTF-8 in a row are hardly ever something else: this is damage to such text.
    damage = any(ord(character) >= 0x800 for character in content[: error.start].decode())
    guess = None if damage else guess_encoding(content)
    if guess is None:
        return f"If the text has another encoding, convert it to UTF-8{or_else}"
    return (
        f"The text may be {guess.named}: convert it, as `iconv -f {guess.iconv} -t UTF-8` does, "
        f"to UTF-8{or_else}"
    )


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


class _MembersStream(io.RawIOBase):
    """Decompressed bytes of an ``.xz`` or ``.bz2`` file, of any number of members.

    The standard library's own files take what follows a member for padding if it cannot be read,
    so a file that is damaged there would lose its rest.
    """

    def __init__(
        self,
        raw: io.BufferedReader,
        codec: Callable[[], Any],
        damaged: type[BaseException],
        padding: bytes,
    ) -> None:
        self._raw, self._codec, self._damaged, self._padding = raw, codec, damaged, padding
        self._member: Any = codec()
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._member is None:
                self._pending = self._pending.lstrip(self._padding)
                while not self._pending and (data := self._raw.read(_READ_BYTES)):
                    self._pending = data.lstrip(self._padding)
                if not self._pending:
                    return 0
                self._member = self._codec()
            elif self._member.needs_input and not self._pending:
                self._pending = self._raw.read(_READ_BYTES)
                if not self._pending:
                    raise EOFError("the last stream is cut off")
            try:
                out = self._member.decompress(self._pending, len(buffer))
            except self._damaged as error:
                raise EOFError(str(error)) from None
            self._pending = b""
            if self._member.eof:
                self._pending, self._member = self._member.unused_data, None
            if out:
                buffer[: len(out)] = out
                return len(out)


def _decompressed(
    raw: io.BufferedReader, suffix: str
) -> tuple[io.BufferedIOBase, tuple[type[BaseException], ...]]:
    """Return the decompressed stream of a file, and the errors that mean damage."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw), (EOFError, zlib.error, gzip.BadGzipFile)
    if suffix == ".zst":
        zstd = _ZstdStream(raw)
        return io.BufferedReader(zstd, PIECE_BYTES), (EOFError, zstd._error)
    try:
        if suffix == ".xz":
            import lzma

            # Any other format than .xz would take zeros for a whole, empty file.
            codec = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)
            members = _MembersStream(raw, codec, lzma.LZMAError, b"\0")
        else:
            import bz2

            members = _MembersStream(raw, bz2.BZ2Decompressor, OSError, b"")
    except ImportError as error:
        raise MissingPackageError(
            f"{raw.name}: this Python was built without what reads {suffix} files ({error}). "
            "Decompress the file, or use another build of Python."
        ) from None
    return io.BufferedReader(members, PIECE_BYTES), (EOFError,)


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, decompressing ``.gz``, ``.zst``, ``.xz`` and ``.bz2`` on the way.

    Raises:
        ValueError: The compressed data is damaged or cut off, or the codec is not installed.
    """
    suffix = path.suffix.lower()
    with open(path, "rb") as raw:
        if suffix not in COMPRESSED:
            yield raw
            return
        if os.fstat(raw.fileno()).st_size == 0:
            raise InvalidValueError(f"{path}: not a {suffix} file: it has no bytes at all.")
        stream, damaged = _decompressed(raw, suffix)
        try:
            with stream:
                yield stream
        except damaged as error:
            raise InvalidValueError(
                f"{path}: damaged or cut-off {suffix} file: {error}. Get the file again."
            ) from error
