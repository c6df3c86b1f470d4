"""Write a token store: streamed, validated, and visible only when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from lightning_llm.data import megatron_index
from lightning_llm.data.store import BIN_NAME, FORMAT, FORMAT_VERSION, IDX_NAME, META_NAME
from lightning_llm.errors import (
    ExistingFileError,
    InvalidTypeError,
    InvalidValueError,
    not_saved,
)

_BUFFER_BYTES = 4 << 20
_LOCK_NAME = "writer.lock"


class TokenStoreWriter:
    """Write documents of token ids to a new `TokenStore`.

    Everything is written to a temporary folder beside ``path``, synchronised to disk and then
    renamed: ``path`` holds a complete store or does not exist. The folders that killed writers
    left behind are removed by the next writer of the same ``path``.

    Args:
        path: Folder to create.
        vocab_size: Number of ids; every id must lie in ``range(vocab_size)``.
        tokenizer_fingerprint: Content hash of the tokenizer, kept in the metadata.
        source_fingerprint: Content hash of the text, kept in the metadata.

    Example:
        >>> with TokenStoreWriter("corpus", vocab_size=256) as writer:      # doctest: +SKIP
        ...     writer.add([72, 105, 0])

    Raises:
        FileExistsError: There is something under ``path``.
        ValueError: ``vocab_size`` is not between 1 and 2**31.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        vocab_size: int,
        tokenizer_fingerprint: str | None = None,
        source_fingerprint: str | None = None,
    ) -> None:
        if not 1 <= vocab_size <= 2**31:
            raise InvalidValueError(f"vocab_size={vocab_size} must be between 1 and 2**31.")
        self.path = Path(path).expanduser().absolute()
        if os.path.lexists(self.path):
            raise ExistingFileError(f"{self.path} already exists: remove it or write elsewhere.")
        self.vocab_size = vocab_size
        self.dtype = megatron_index.token_dtype(vocab_size)
        self.num_documents = 0
        self.num_tokens = 0
        self._fingerprints = {
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "source_fingerprint": source_fingerprint,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(self.path)
        # Not mkdtemp: its private mode would stay with the published folder.
        self._folder = self.path.parent / f"{_prefix(self.path)}{secrets.token_hex(8)}"
        self._folder.mkdir()
        self._lock = FileLock(self._folder / _LOCK_NAME)
        self._lock.acquire(timeout=0)
        self._bin: BinaryIO = open(self._folder / BIN_NAME, "wb", buffering=0)  # noqa: SIM115
        self._idx: BinaryIO = open(self._folder / IDX_NAME, "w+b")  # noqa: SIM115
        self._idx.write(bytes(megatron_index.HEADER_BYTES))
        self._digest = hashlib.sha256()
        self._pending: list[np.ndarray] = []
        self._pending_bytes = 0
        self._open_tokens = 0  # of the sequence that is being written
        self._sequences = 0
        self._continuations: list[int] = []
        self._continues = False
        self._finished = False

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        """Write one document (its ids: integers, 1-D; none is allowed).

        Raises:
            ValueError: An id is negative or not below ``vocab_size``, or a document is open.
            TypeError: ``ids`` are not integers.
        """
        self._check_open()
        if self._open_tokens or self._continues:
            raise ValueError("add() inside a document: call end_document() after extend().")
        self.extend(ids)
        self.end_document()

    def extend(self, ids: Sequence[int] | np.ndarray) -> None:
        """Write the next piece of the current document; `end_document` closes it."""
        self._check_open()
        array = self._validated(ids)
        limit = megatron_index.MAX_SEQUENCE_TOKENS
        while self._open_tokens + len(array) > limit:
            head, array = np.split(array, [limit - self._open_tokens])
            self._append(head)
            self._end_sequence()
            self._continues = True
        self._append(array)

    def extend_all(self, ids: Sequence[int] | np.ndarray, ends: Sequence[int]) -> None:
        """Write pieces of many documents at once: for short ones, whose calls cost more than they.

        Args:
            ids: Of all of them, one after the other; the first piece belongs to the current
                document.
            ends: Places in ``ids`` behind the last id of each document that is closed, ascending.
                What stands behind the last of them stays open.

        Raises:
            ValueError: See `add`; or ``ends`` do not ascend within ``ids``.
            TypeError: See `add`.
        """
        self._check_open()
        borders = np.asarray(ends, dtype=np.int64)
        sizes = np.diff(borders, prepend=0)
        if len(borders) and (sizes.min() < 0 or borders[-1] > len(ids)):
            raise ValueError(f"ends must ascend from 0 to {len(ids)}, the number of ids")
        if self._open_tokens + len(ids) > megatron_index.MAX_SEQUENCE_TOKENS:
            for first, last in zip((0, *ends), ends, strict=False):
                self.extend(ids[first:last])
                self.end_document()
            self.extend(ids[ends[-1] if len(ends) else 0 :])
            return
        self._append(self._validated(ids, borders))
        if not len(borders):
            return
        sizes[0] += self._open_tokens - len(ids)
        if self._continues:
            self._continuations.append(self._sequences)
            self._continues = False
        self._idx.write(sizes.astype("<u4").tobytes())
        self._sequences += len(sizes)
        self.num_documents += len(sizes)
        self._open_tokens = len(ids) - int(borders[-1])

    def end_document(self) -> None:
        """Close the current document."""
        self._check_open()
        self._end_sequence()
        self._continues = False
        self.num_documents += 1

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError(f"{self.path}: the writer is closed.")

    def _validated(
        self, ids: Sequence[int] | np.ndarray, borders: np.ndarray | None = None
    ) -> np.ndarray:
        """Check ids and copy them in the store's dtype; ``borders`` are for the message alone."""
        array = np.asarray(ids)
        if array.size == 0:
            return np.empty(0, dtype=self.dtype)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InvalidTypeError(
                f"document {self.num_documents}: expected a flat sequence of integer ids, got "
                f"{array.dtype} with shape {array.shape}."
            )
        if array.min() < 0 or array.max() >= self.vocab_size:
            place = position = int(np.argmax((array < 0) | (array >= self.vocab_size)))
            before = 0 if borders is None else int(np.searchsorted(borders, place, side="right"))
            if borders is not None and before:
                position -= int(borders[before - 1])
            else:
                position += self._open_tokens
            raise InvalidValueError(
                f"document {self.num_documents + before}, position {position}: id "
                f"{array[place]} is not in 0..{self.vocab_size - 1} (vocab_size="
                f"{self.vocab_size}). The ids come from another tokenizer than vocab_size."
            )
        return array.astype(self.dtype)  # a copy: the caller may reuse its buffer

    def _append(self, array: np.ndarray) -> None:
        if len(array) == 0:
            return
        self._pending.append(array)
        self._pending_bytes += array.nbytes
        self._open_tokens += len(array)
        self.num_tokens += len(array)
        if self._pending_bytes >= _BUFFER_BYTES:
            self._flush()

    def _end_sequence(self) -> None:
        if self._continues:
            self._continuations.append(self._sequences)
        self._idx.write(self._open_tokens.to_bytes(4, "little"))
        self._sequences += 1
        self._open_tokens = 0

    def _flush(self) -> None:
        if not self._pending:
            return
        data = memoryview(np.concatenate(self._pending).view(np.uint8))  # type: ignore[arg-type]
        self._pending, self._pending_bytes = [], 0
        self._digest.update(data)
        try:
            while data:
                data = data[self._bin.write(data) :]
        except OSError as error:
            free = shutil.disk_usage(self._folder).free
            problem = f"{error.strerror} ({len(data)} bytes to write, {free} free)"
            raise not_saved(error.errno or 0, problem, str(self.path)) from error

    def close(self) -> None:
        """Publish the store under ``path``.

        Raises:
            ValueError: A document is open.
            OSError: The disk is full or the folder not writable; nothing appears under ``path``.
        """
        if self._finished:
            return
        if self._open_tokens or self._continues:
            raise ValueError(f"{self.path}: the last document is open; call end_document().")
        self._flush()
        documents = megatron_index.finish_index(
            self._idx, self.dtype, self._sequences, self._continuations
        )
        assert documents == self.num_documents
        for stream in (self._bin, self._idx):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        self._write_meta()
        self._lock.release()
        (self._folder / _LOCK_NAME).unlink(missing_ok=True)
        _sync_folder(self._folder)
        os.rename(self._folder, self.path)
        _sync_folder(self.path.parent)
        self._finished = True

    def _write_meta(self) -> None:
        with open(self._folder / IDX_NAME, "rb") as stream:
            index_digest = hashlib.file_digest(stream, "sha256").hexdigest()
        meta: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "vocab_size": self.vocab_size,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            **self._fingerprints,
            "files": {
                BIN_NAME: {
                    "bytes": self.num_tokens * self.dtype.itemsize,
                    "sha256": self._digest.hexdigest(),
                },
                IDX_NAME: {
                    "bytes": os.path.getsize(self._folder / IDX_NAME),
                    "sha256": index_digest,
                },
            },
        }
        with open(self._folder / META_NAME, "w", encoding="utf-8") as stream:
            json.dump(meta, stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())

    def abort(self) -> None:
        """Throw away everything written; ``path`` stays as it was."""
        if self._finished:
            return
        self._finished = True
        self._bin.close()
        # What is still buffered may not fit on a full disk; it is being thrown away anyway.
        with contextlib.suppress(OSError):
            self._idx.close()
        self._lock.release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                self.close()
        finally:
            self.abort()  # does nothing after a close that went well


def _prefix(path: Path) -> str:
    return f".{path.name}.writing-"


def _remove_stale(path: Path) -> None:
    """Remove the folders of writers that died: nobody holds the lock inside them any more."""
    for folder in path.parent.glob(f"{_prefix(path).replace('[', '[[]')}*"):
        lock = folder / _LOCK_NAME
        if not lock.exists() and time.time() - folder.stat().st_mtime < 60:
            continue  # its writer may be about to take the lock
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders; its renames are journaled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
