"""A corpus of token ids on disk: memory-mapped, checked, addressed by document or position."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_llm.data.megatron_index import MegatronIndex
from lightning_llm.errors import InvalidValueError, MissingFileError

FORMAT = "lightning_llm.token_store"
FORMAT_VERSION = 1
BIN_NAME, IDX_NAME, META_NAME = "tokens.bin", "tokens.idx", "meta.json"


class TokenStore:
    """Read documents of token ids from a memory-mapped store.

    On disk a store is Megatron-LM's indexed dataset (``tokens.bin``, ``tokens.idx``) and a
    ``meta.json`` with counts and checksums. Opening one reads a few bytes at any size.

    Args:
        path: The store's folder, or the prefix (or either file) of a ``.bin``/``.idx`` pair that
            another tool wrote. Such a pair has no checksums and no known vocabulary size.

    Attributes:
        path: As given, absolute.
        meta: Contents of ``meta.json``; empty for a foreign store.
        dtype: Of the ids on disk.
        num_tokens: Ids over all documents.

    Example:
        >>> store = TokenStore("corpus")                       # doctest: +SKIP
        >>> len(store), store.num_tokens, store[0][:4]         # doctest: +SKIP

    Raises:
        FileNotFoundError: There is no store under ``path``.
        ValueError: A file is truncated, extended, of another dtype, or no token store at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.bin_path, self.idx_path, meta_path = _locate(self.path)
        self.meta: dict[str, Any] = _read_meta(meta_path)
        self._index = MegatronIndex(self.idx_path)
        self.dtype = self._index.dtype
        if not self.bin_path.is_file():
            raise MissingFileError(f"{self.bin_path}: the index has no tokens beside it.")
        self._check_lengths(meta_path)
        self.num_tokens = os.path.getsize(self.bin_path) // self.dtype.itemsize
        self._tokens = (
            np.memmap(self.bin_path, dtype=self.dtype, mode="r").view(np.ndarray)
            if self.num_tokens
            else np.empty(0, dtype=self.dtype)
        )

    def _check_lengths(self, meta_path: Path) -> None:
        """Compare lengths on disk, in the index and in the metadata; no content is read."""
        actual = {path: os.path.getsize(path) for path in (self.bin_path, self.idx_path)}
        expected = {self.bin_path: self._index.data_bytes}
        for name, entry in self.meta.get("files", {}).items():
            expected[self.path / name] = entry["bytes"]
        for path, length in expected.items():
            if actual.get(path, 0) != length:
                change = "truncated" if actual.get(path, 0) < length else "extended"
                raise InvalidValueError(
                    f"{path}: {change}: {actual.get(path, 0)} bytes instead of {length}. "
                    "Write the store again, or restore the file."
                )
        if self.meta and self.meta["dtype"] != self.dtype.name:
            raise InvalidValueError(
                f"{self.idx_path}: holds {self.dtype.name} tokens, but {meta_path} says "
                f"{self.meta['dtype']}. The two files belong to different stores."
            )

    def __len__(self) -> int:
        return len(self._index.document_indices) - 1

    def __getitem__(self, document: int) -> np.ndarray:
        """Return the ids of one document: read-only, in the store's dtype."""
        count = len(self)
        if not -count <= document < count:
            raise IndexError(f"document {document} of {count} in {self.path}")
        first, last = self._index.document_indices[document % count : document % count + 2]
        if first == last:
            return self._tokens[:0]
        start = int(self._index.pointers[first]) // self.dtype.itemsize
        stop = int(self._index.pointers[last - 1]) // self.dtype.itemsize
        return self._tokens[start : stop + int(self._index.sizes[last - 1])]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return ids ``start:stop`` of the whole stream, across documents, without a copy.

        Raises:
            IndexError: The range does not lie inside the stream.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.num_tokens} in {self.path}")
        return self._tokens[start:stop]

    @cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """Where each document starts in the stream and the last one ends: int64 (len + 1,)."""
        return self._index.sequence_offsets()[self._index.document_indices]

    @property
    def vocab_size(self) -> int | None:
        """Number of ids of the vocabulary; None for a foreign store, which does not say."""
        return self.meta.get("vocab_size")

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Content hash of the tokenizer that wrote the ids, where it was given."""
        return self.meta.get("tokenizer_fingerprint")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that changes with any token, document border, dtype or tokenizer.

        It is computed from the checksums in ``meta.json``. A foreign store has none: there it
        covers the index, the length of the tokens and their first and last MiB.
        """
        if self.meta:
            content = json.dumps(self.meta, sort_keys=True).encode()
            return hashlib.sha256(content).hexdigest()
        digest = hashlib.sha256(self.idx_path.read_bytes())
        edge = (1 << 20) // self.dtype.itemsize
        digest.update(f"{self.dtype.name} {self.num_tokens}".encode())
        digest.update(self._tokens[:edge].tobytes() + self._tokens[-edge:].tobytes())
        return digest.hexdigest()

    def verify(self) -> None:
        """Read the whole store and compare it with its checksums.

        A foreign store has no checksums: its index is checked for consistency, with a warning.

        Raises:
            ValueError: A file's content changed; the message names it.
        """
        files = self.meta.get("files", {})
        for name, entry in files.items():
            with open(self.path / name, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != entry["sha256"]:
                raise InvalidValueError(
                    f"{self.path / name}: sha256 mismatch: {digest} on disk, {entry['sha256']} "
                    "when it was written. The file is damaged: write the store again."
                )
        self._index.check()
        if not files:
            warnings.warn(
                f"{self.path}: no {META_NAME}, hence no checksums: only the consistency of the "
                "index was checked.",
                stacklevel=2,
            )

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        # Another process maps the files again; no token is ever pickled.
        return type(self), (self.path,)

    def __repr__(self) -> str:
        return (
            f"TokenStore({str(self.path)!r}, documents={len(self)}, tokens={self.num_tokens}, "
            f"dtype={self.dtype.name}, vocab_size={self.vocab_size})"
        )


def _locate(path: Path) -> tuple[Path, Path, Path]:
    """Return the `.bin`, `.idx` and metadata paths that ``path`` stands for."""
    if path.is_dir():
        if not (path / IDX_NAME).is_file():
            raise MissingFileError(
                f"{path}: no {IDX_NAME} in this folder. For a store of another tool give the "
                "prefix of its .bin and .idx files."
            )
        return path / BIN_NAME, path / IDX_NAME, path / META_NAME
    # Prefixes may hold dots ("corpus.v1"), so the suffix is added, never replaced.
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    idx = Path(f"{prefix}.idx")
    if not idx.is_file() and path.suffix == ".bin" and path.is_file():
        raise MissingFileError(
            f"{path}: no {idx.name} beside it. If it holds bare ids, as nanoGPT writes them, open "
            "it with RawTokenStore, or train on it with TokenDataModule."
        )
    if not idx.is_file():
        raise MissingFileError(f"{path}: neither a token store folder nor the prefix of {idx}.")
    return Path(f"{prefix}.bin"), idx, Path(os.devnull)


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        known = meta["format"] == FORMAT
        version = meta["format_version"]
        for key in ("dtype", "vocab_size", "num_documents", "num_tokens"):
            meta[key]
        for name in (BIN_NAME, IDX_NAME):
            meta["files"][name]["bytes"], meta["files"][name]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValueError(
            f"{path}: damaged metadata ({error!r}). Write the store again."
        ) from error
    if not known or version > FORMAT_VERSION:
        raise InvalidValueError(
            f"{path}: format {meta['format']!r} version {version}; this version reads {FORMAT!r} "
            f"up to {FORMAT_VERSION}. Update lightning_llm or write the store again."
        )
    return meta
