"""Checkpoint files that carry their own checksum.

`torch.save` writes a zip archive, and a zip archive ends with a comment that readers pass over.
The SHA-256 of every byte before goes there, so the file stays one that plain ``torch.load`` reads,
and the checksum survives copying the single file, which a sidecar would not.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_llm.errors import InvalidValueError, LightningLLMError, MissingFileError

_MARK = b"lightning_llm sha256="
_COMMENT_BYTES = len(_MARK) + 64
# "End of central directory": its last field, two bytes, is the length of the comment after it.
_END_MAGIC = b"PK\x05\x06"
_END_BYTES = 22
_CHUNK_BYTES = 1 << 22


class DamagedCheckpointError(LightningLLMError, ValueError):
    """A checkpoint file is not what was written."""


class SealingWriter:
    """Pass on what `torch.save` writes while hashing it, and seal the file at the end.

    Attributes:
        error: The first error of the file system; `torch.save` may report another in its place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._held = b""  # the last bytes so far: sealing changes them
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all but the last bytes, which may be the archive's end."""
        if len(data) >= _END_BYTES:
            self._emit(self._held)
            view = memoryview(data)
            self._emit(view[:-_END_BYTES])
            self._held = bytes(view[-_END_BYTES:])
        else:
            tail = self._held + bytes(data)
            self._emit(tail[:-_END_BYTES])
            self._held = tail[-_END_BYTES:]
        return len(data)

    def flush(self) -> None:
        """Part of what `torch.save` asks of a file."""

    def seal(self) -> None:
        """Write the end of the archive, with the checksum as its comment."""
        assert len(self._held) == _END_BYTES
        assert self._held.startswith(_END_MAGIC)
        self._emit(self._held[:-2] + struct.pack("<H", _COMMENT_BYTES))
        self._emit(_MARK + self._hash.hexdigest().encode())

    def _emit(self, data: bytes | memoryview) -> None:
        try:
            self._hash.update(data)
            self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def verify_checkpoint(path: str | Path) -> bool:
    """Read a checkpoint file through and compare it with the checksum it carries.

    Returns:
        True when the checksum is right; False when the file carries none, as one of plain Lightning
        does: then nothing is known.

    Raises:
        DamagedCheckpointError: The file is empty, cut short, not a checkpoint, or altered.
        FileNotFoundError: There is none.
    """
    path = Path(path)
    size = path.stat().st_size
    if size == 0:
        raise DamagedCheckpointError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file:
        if size < 2 * _END_BYTES or file.read(4) != b"PK\x03\x04":
            raise DamagedCheckpointError(f"{path} ({size:,} bytes) is not a checkpoint file")
        digest = _stored_digest(path, file, size)
        if digest is None:
            return False
        file.seek(0)
        actual = hashlib.sha256()
        left = size - _COMMENT_BYTES
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            actual.update(chunk)
            left -= len(chunk)
    if actual.hexdigest().encode() != digest:
        raise DamagedCheckpointError(
            f"sha256 mismatch in {path} ({size:,} bytes): it was altered after it was written"
        )
    return True


def _stored_digest(path: Path, file: BinaryIO, size: int) -> bytes | None:
    """Return the checksum at the end of the file, None when it is one that was never sealed."""
    file.seek(-min(size, _END_BYTES + _COMMENT_BYTES), 2)
    tail = file.read()
    comment = tail[-_COMMENT_BYTES:]
    end = tail[:_END_BYTES]
    if end.startswith(_END_MAGIC) and end[-2:] == struct.pack("<H", _COMMENT_BYTES):
        if comment.startswith(_MARK):
            return comment[len(_MARK) :]
        raise DamagedCheckpointError(
            f"sha256 mismatch in {path} ({size:,} bytes): its checksum was altered"
        )
    unsealed_end = tail[-_END_BYTES:]
    if unsealed_end.startswith(_END_MAGIC) and unsealed_end.endswith(b"\0\0"):
        return None
    raise DamagedCheckpointError(
        f"{path} ({size:,} bytes) is damaged: the end of the file is missing or altered; its save "
        "was interrupted, or the copy of it"
    )


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """Verify a checkpoint file and load it as data: no code in it is ever run.

    Args:
        path: A local file.
        map_location: As for `torch.load`.
        mmap: Map the tensors instead of reading them; the file must stay as it is.

    Raises:
        DamagedCheckpointError: The file is not what was written, or holds more than plain data.
        FileNotFoundError: There is none.
        ValueError: The path is a URL.
    """
    path = local_path(path)
    if not path.exists():
        raise MissingFileError(f"checkpoint {path}: no such file")
    if not verify_checkpoint(path):
        rank_zero_info(f"{path} carries no checksum: loaded unverified")
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise DamagedCheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint of plain data: "
            f"{type(error).__name__}: {reason[0]}"
        ) from error


def local_path(path: str | Path) -> Path:
    """Return the path; refuse URLs, from which code could come and to which no save is atomic.

    Raises:
        ValueError: It is a URL.
    """
    scheme, colon, _ = str(path).partition("://")
    if colon and scheme.isalnum():
        raise InvalidValueError(
            f"checkpoint {path}: {scheme}:// addresses are not read or written; copy the file to a "
            "local folder and name it there"
        )
    return Path(path)
