"""Files of bare token ids, as nanoGPT, llm.c and modded-nanogpt write them, memory-mapped.

nanoGPT's ``train.bin`` is the ids and nothing else, uint16. The shards of llm.c and modded-nanogpt
start with 256 int32, of which the first three are a magic number, a version and the number of ids
(``dev/data/data_common.py`` of llm.c): GPT-2's ids follow as uint16, Llama 3's as uint32. Where
documents end, these files do not say: the end-of-text id among the ids does.
"""

from __future__ import annotations

import hashlib
import os
import struct
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lightning_llm.data.id_check import check_ids, in_chunks
from lightning_llm.data.store import TokenStore
from lightning_llm.errors import InvalidValueError, MissingFileError

TokenDtype = Literal["uint8", "uint16", "uint32", "int32", "int64"]

_HEADER_BYTES = 256 * 4
# Magic number -> version, dtype of the ids.
_HEADERS: dict[int, tuple[int, np.dtype]] = {
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}
_SAMPLED = 1 << 16
_LEAST_SAMPLED = 64


class RawTokenStore(TokenStore):
    """Read a file of bare token ids like a `TokenStore`; nothing is copied or converted.

    A document ends with ``eos_id``, and that id belongs to it. Files that put the id before each
    text instead (llm.c) hold the same stream, so they are cut at the same places: a first document
    of one id is the only difference.

    Args:
        path: The ``.bin`` file.
        dtype: Of the ids on disk; by default what the header says, without one uint16, or uint32
            where ``vocab_size`` needs it.
        eos_id: The id that ends a document; None makes the whole file one document.
        vocab_size: Number of ids of the vocabulary; None if it is not known.

    Attributes:
        path: As given, absolute.
        dtype: Of the ids on disk.
        num_tokens: Ids in the file.

    Example:
        >>> store = RawTokenStore("train.bin", eos_id=50256, vocab_size=50257)  # doctest: +SKIP
        >>> len(store), store.num_tokens                                        # doctest: +SKIP

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its length or beginning does not fit the dtype or the header.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dtype: TokenDtype | None = None,
        eos_id: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.path = self.bin_path = Path(path).expanduser().absolute()
        if not self.path.is_file():
            raise MissingFileError(f"{self.path}: no such file of token ids.")
        if dtype is not None and dtype not in get_args(TokenDtype):
            known = ", ".join(get_args(TokenDtype))
            raise InvalidValueError(
                f"{self.path}: dtype={dtype!r} must be one of {known}, or None."
            )
        self.meta: dict[str, Any] = {}
        self.eos_id = eos_id
        self._vocab_size = vocab_size
        self._dtype_given = dtype
        start, self.dtype = self._layout()
        length = os.path.getsize(self.path) - start
        if length % self.dtype.itemsize:
            raise InvalidValueError(
                f"{self.path}: {length:,} bytes are no whole number of {self.dtype.name} ids. The "
                "file is damaged, or of another dtype: give dtype="
            )
        self.num_tokens = length // self.dtype.itemsize
        self._tokens = (
            np.memmap(self.path, dtype=self.dtype, mode="r", offset=start).view(np.ndarray)
            if self.num_tokens
            else np.empty(0, dtype=self.dtype)
        )
        if dtype is None and start == 0:
            self._refuse_wider_ids()

    def _layout(self) -> tuple[int, np.dtype]:
        """Return where the ids start, and their dtype."""
        with open(self.path, "rb") as stream:
            head = stream.read(12)
        magic, version, count = struct.unpack("<3i", head.ljust(12, b"\0"))
        if magic not in _HEADERS:
            wide = self._vocab_size is not None and self._vocab_size > 1 << 16
            return 0, np.dtype(self._dtype_given or ("uint32" if wide else "uint16"))
        known_version, dtype = _HEADERS[magic]
        if version != known_version:
            raise InvalidValueError(
                f"{self.path}: a shard with magic {magic} and version {version}; of these only "
                f"version {known_version} is read."
            )
        if self._dtype_given is not None and np.dtype(self._dtype_given) != dtype:
            raise InvalidValueError(
                f"{self.path}: dtype={self._dtype_given!r}, but the header stands for "
                f"{dtype.name}. Leave dtype out."
            )
        expected, actual = _HEADER_BYTES + count * dtype.itemsize, os.path.getsize(self.path)
        if actual != expected:
            raise InvalidValueError(
                f"{self.path}: {actual:,} bytes, but its header tells of {count:,} ids of "
                f"{dtype.name} ({expected:,} bytes): truncated or extended. Write it again."
            )
        return _HEADER_BYTES, dtype

    def _refuse_wider_ids(self) -> None:
        """Notice ids of 32 bits read as 16: every second one is the zero upper half."""
        sample = self._tokens[:_SAMPLED]
        if self.dtype.itemsize != 2 or len(sample) < _LEAST_SAMPLED or sample[1::2].any():
            return
        if sample.any():
            raise InvalidValueError(
                f"{self.path}: every second uint16 is 0, as in a file of 32-bit ids. Give "
                "dtype='uint32'; if these really are 16-bit ids, dtype='uint16'."
            )

    def __len__(self) -> int:
        return len(self.document_offsets) - 1

    def __getitem__(self, document: int) -> np.ndarray:
        """Return the ids of one document: read-only, in the dtype of the file."""
        count = len(self)
        if not -count <= document < count:
            raise IndexError(f"document {document} of {count} in {self.path}")
        start, stop = self.document_offsets[document % count : document % count + 2]
        return self._tokens[start:stop]

    @cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """Where each document starts and the last one ends: int64 (len + 1,).

        Reads the whole file once, when first asked for and if ``eos_id`` is known.
        """
        ends = [np.zeros(1, dtype=np.int64)]
        if self.eos_id is not None:
            for start, ids in in_chunks(self):
                ends.append(np.flatnonzero(ids == self.eos_id) + (start + 1))
        found = np.concatenate(ends)
        return found if found[-1] == self.num_tokens else np.append(found, self.num_tokens)

    @property
    def vocab_size(self) -> int | None:
        """Number of ids of the vocabulary, as given."""
        return self._vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of dtype, length, end-of-text id and the first and last MiB.

        There is no checksum to compute it from, and nothing more is read.
        """
        edge = (1 << 20) // self.dtype.itemsize
        digest = hashlib.sha256(f"{self.dtype.name} {self.num_tokens} {self.eos_id}".encode())
        digest.update(self._tokens[:edge].tobytes() + self._tokens[-edge:].tobytes())
        return digest.hexdigest()

    def verify(self) -> None:
        """Read the whole file and look for ids outside of the vocabulary, if that is known.

        Raises:
            ValueError: There is one; its place is named.
        """
        if self._vocab_size is not None:
            check_ids(self, self._vocab_size)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        options: dict[str, Any] = {"eos_id": self.eos_id, "vocab_size": self._vocab_size}
        return partial(type(self), dtype=self._dtype_given, **options), (self.path,)

    def __repr__(self) -> str:
        return (
            f"RawTokenStore({str(self.path)!r}, tokens={self.num_tokens}, dtype={self.dtype.name}, "
            f"eos_id={self.eos_id}, vocab_size={self.vocab_size})"
        )
