"""The `.idx` file of Megatron-LM's indexed dataset, byte for byte.

Layout (little endian)::

    9 bytes   b"MMIDIDX\\x00\\x00"
    uint64    version, 1
    uint8     code of the token dtype
    uint64    number of sequences S
    uint64    number of document indices D (documents + 1)
    int32[S]  tokens of each sequence
    int64[S]  byte at which each sequence starts in the .bin file
    int64[D]  first sequence of each document, then S

A document is one sequence, or several where it is longer than an int32 can count.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lightning_llm.errors import InvalidValueError, MissingFileError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER_BYTES = 34
MAX_SEQUENCE_TOKENS = 2**31 - 1
DTYPE_CODES = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
_CHUNK = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the dtype Megatron-LM picks for a vocabulary: uint16 below 65,500 ids, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def header(dtype: np.dtype, sequences: int, document_indices: int) -> bytes:
    """Return the first 34 bytes of an index."""
    code = next(code for code, kind in DTYPE_CODES.items() if np.dtype(kind) == dtype)
    return MAGIC + struct.pack("<QBQQ", VERSION, code, sequences, document_indices)


def finish_index(
    stream: BinaryIO, dtype: np.dtype, sequences: int, continuations: list[int]
) -> int:
    """Complete an index of which only the sizes were written so far, in bounded memory.

    Args:
        stream: Open for reading and writing: room for the header, then the sizes (int32).
        dtype: Of the tokens.
        sequences: How many sizes were written.
        continuations: Sequences that go on with the document of the one before.

    Returns:
        The number of documents.
    """
    documents = sequences - len(continuations)
    stream.seek(HEADER_BYTES + 4 * sequences)
    position = 0
    for sizes in _read_sizes(stream, sequences):
        ends = position + np.cumsum(sizes, dtype=np.int64)
        stream.write(((ends - sizes) * dtype.itemsize).astype("<i8").tobytes())
        position = int(ends[-1])
    skipped = np.asarray(continuations, dtype=np.int64)
    for start in range(0, sequences, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, sequences), dtype="<i8")
        stream.write(numbers[~np.isin(numbers, skipped)].tobytes())
    stream.write(struct.pack("<q", sequences))
    stream.seek(0)
    stream.write(header(dtype, sequences, documents + 1))
    return documents


def _read_sizes(stream: BinaryIO, sequences: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the sizes in chunks; the stream's position is put back after each read."""
    for start in range(0, sequences, _CHUNK):
        here = stream.tell()
        stream.seek(HEADER_BYTES + 4 * start)
        raw = stream.read(4 * min(_CHUNK, sequences - start))
        stream.seek(here)
        yield np.frombuffer(raw, dtype="<i4").astype(np.int64)


class MegatronIndex:
    """Memory-mapped view of an `.idx` file; opening it costs the same at any size.

    Args:
        path: The `.idx` file.

    Attributes:
        dtype: Of the tokens in the `.bin` file.
        sizes: Tokens of each sequence, int32 (S,).
        pointers: First byte of each sequence, int64 (S,).
        document_indices: First sequence of each document, then S; int64 (documents + 1,).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no index, or its length is not what its header says.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"{path}: no such token store index.")
        length = os.path.getsize(path)
        with open(path, "rb") as stream:
            head = stream.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
            raise InvalidValueError(
                f"{path}: not an indexed dataset (it starts with {head[:9]!r})."
            )
        version, code, sequences, indices = struct.unpack("<QBQQ", head[len(MAGIC) :])
        if version != VERSION:
            raise InvalidValueError(
                f"{path}: index version {version}; only version {VERSION} is read."
            )
        kind = DTYPE_CODES.get(code)
        if kind is None or not np.issubdtype(kind, np.integer):
            raise InvalidValueError(
                f"{path}: dtype code {code} stands for no integer type of token ids."
            )
        expected = HEADER_BYTES + 12 * sequences + 8 * indices
        # Multimodal datasets append one int8 mode for each sequence; it says nothing about text.
        if length not in (expected, expected + sequences) or indices < 1:
            raise InvalidValueError(
                f"{path}: truncated or extended: {length} bytes, but its header tells of "
                f"{sequences} sequences and {indices} document indices ({expected} bytes)."
            )
        self.path = path
        self.dtype = np.dtype(kind)
        self.sizes = _map(path, "<i4", HEADER_BYTES, sequences)
        self.pointers = _map(path, "<i8", HEADER_BYTES + 4 * sequences, sequences)
        self.document_indices = _map(path, "<i8", HEADER_BYTES + 12 * sequences, indices)

    @property
    def data_bytes(self) -> int:
        """How long the `.bin` file has to be, from the last sequence alone."""
        if len(self.sizes) == 0:
            return 0
        return int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize

    def sequence_offsets(self) -> npt.NDArray[np.int64]:
        """Return where each sequence starts and the last one ends, in tokens: int64 (S + 1,)."""
        offsets = np.zeros(len(self.sizes) + 1, dtype=np.int64)
        np.cumsum(self.sizes, out=offsets[1:])
        return offsets

    def check(self) -> None:
        """Check every entry against every other one.

        Raises:
            ValueError: A size is negative, or sequences or documents do not follow one another.
        """
        offsets = self.sequence_offsets()
        indices = self.document_indices
        if (self.sizes < 0).any():
            raise InvalidValueError(
                f"{self.path}: negative size of sequence {np.argmax(self.sizes < 0)}."
            )
        wrong = np.flatnonzero(self.pointers != offsets[:-1] * self.dtype.itemsize)
        if len(wrong):
            raise InvalidValueError(
                f"{self.path}: sequence {wrong[0]} does not start where the last ends."
            )
        if indices[0] != 0 or indices[-1] != len(self.sizes) or (np.diff(indices) < 0).any():
            raise InvalidValueError(
                f"{self.path}: the document indices do not cover the sequences."
            )


def _map(path: Path, dtype: str, offset: int, count: int) -> np.ndarray:
    if count == 0:
        return np.empty(0, dtype=dtype)
    mapped = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    # A plain array over the same pages: indexing the memmap subclass costs a microsecond more.
    return mapped.view(np.ndarray)
