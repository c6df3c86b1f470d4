"""Token stores that lie on disk already: opened, and checked against the vocabulary."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_llm.data.cache import cache_root
from lightning_llm.data.corpus import Part
from lightning_llm.data.file_patterns import Walk, listed, once, shown
from lightning_llm.data.id_check import check_ids
from lightning_llm.data.raw_tokens import RawTokenStore, TokenDtype
from lightning_llm.data.several_stores import SeveralStores
from lightning_llm.data.store import TokenStore
from lightning_llm.data.tokenizer import (
    TokenizerSpec,
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from lightning_llm.errors import InvalidValueError, MissingFileError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class StoredTokens:
    """Token stores that somebody else prepared.

    Attributes:
        paths: By part, in order.
        tokenizer_spec: The tokenizer that made the ids, to be loaded; None if there is none.
        vocab_size: Number of ids of the vocabulary; None to ask tokenizer or stores.
        eos_id: The id that ends a document; None to ask the tokenizer.
        dtype: Of files of bare ids.
        cache_dir: Where it is kept which files were checked.
    """

    paths: Mapping[Part, tuple[Path, ...]]
    tokenizer_spec: TokenizerSpec | None = None
    vocab_size: int | None = None
    eos_id: int | None = None
    dtype: TokenDtype | None = None
    cache_dir: str | Path | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer; None if there is none."""
        if self.tokenizer_spec is None:
            return None
        assert self.tokenizer_spec.pretrained is not None
        return load_tokenizer(self.tokenizer_spec.pretrained, add_bos=self.tokenizer_spec.add_bos)

    @cached_property
    def known_ids(self) -> int:
        """Number of ids of the vocabulary.

        Raises:
            ValueError: Nothing tells.
        """
        of_tokenizer = None if self.tokenizer is None else vocabulary_size(self.tokenizer)
        if self.vocab_size is not None and self.vocab_size < (of_tokenizer or 0):
            raise InvalidValueError(
                f"vocab_size={self.vocab_size}, but the tokenizer has {of_tokenizer} ids. Leave "
                "vocab_size out, or give at least as many."
            )
        known = self.vocab_size or of_tokenizer
        if known is not None:
            return known
        every = [path for paths in self.paths.values() for path in paths]
        indexed = [path for path in every if not is_bare(path)]
        sizes = [size for path in indexed if (size := TokenStore(path).vocab_size)]
        if not sizes:
            raise InvalidValueError(
                f"{every[0]}: nothing says how many ids the vocabulary has. Give "
                "vocab_size (50257 for GPT-2's), or the tokenizer that made the ids."
            )
        return max(sizes)

    def _open(self, path: Path) -> TokenStore:
        """Open a store, without reading it."""
        if not is_bare(path):
            if self.dtype is not None:
                raise InvalidValueError(
                    f"{path}: dtype={self.dtype!r} is for files of bare ids; this store has an "
                    "index that says it. Leave dtype out."
                )
            return TokenStore(path)
        eos_id = self.eos_id
        if eos_id is None and self.tokenizer is not None:
            eos_id = self.tokenizer.eos_token_id
        return RawTokenStore(path, dtype=self.dtype, eos_id=eos_id, vocab_size=self.known_ids)

    def prepare(self) -> dict[Part, TokenStore]:
        """Open the stores and check their ids; each file is read once, and then remembered.

        Raises:
            ValueError: A store has ids that the vocabulary has not, is of another tokenizer, or
                has no two ids.
        """
        opened: dict[Part, TokenStore] = {}
        for part, paths in self.paths.items():
            stores = [self._open(path) for path in paths]
            for store in stores:
                self._check(store)
            opened[part] = stores[0] if len(stores) == 1 else SeveralStores(stores)
        return opened

    def _check(self, store: TokenStore) -> None:
        if store.num_tokens < 2:
            raise InvalidValueError(
                f"{store.path}: {store.num_tokens} tokens; there is nothing to learn."
            )
        made_by = store.tokenizer_fingerprint
        if made_by is not None and self.tokenizer is not None:
            given = tokenizer_fingerprint(self.tokenizer)
            if given != made_by:
                raise InvalidValueError(
                    f"{store.path}: its ids were made by another tokenizer (fingerprint "
                    f"{made_by[:12]}) than the one given ({given[:12]}). Give the one that made "
                    "them."
                )
        # A store of ours was checked when it was written.
        written_for = None if isinstance(store, RawTokenStore) else store.vocab_size
        if written_for is None or written_for > self.known_ids:
            check_ids(store, self.known_ids, cache_root(self.cache_dir))


def expand_stores(
    given: str | Path | Sequence[str | Path], argument: str = "stores"
) -> tuple[Path, ...]:
    """Return the stores that paths and patterns stand for, those of a pattern by name.

    A store that is listed or matched several times is read once, with a warning.

    Args:
        given: One or several. A pattern stands for folders and ``.bin`` files.
        argument: Name of the argument that gives them, for messages.

    Raises:
        FileNotFoundError: A pattern stands for nothing, or a link leads nowhere.
        PermissionError: A folder cannot be listed.
        TypeError: It is no path and no list of paths.
        ValueError: Nothing is given.
    """
    if isinstance(given, Sequence) and len(given) == 0:
        raise InvalidValueError(f"{argument}: an empty list of stores: give at least one path.")
    found: list[str] = []
    for text in listed(given, argument):
        if not glob.has_magic(text) or any(map(os.path.exists, _names(text))):
            found.append(text)
            continue
        walk = Walk()
        stores = [
            path
            for path, kind in walk.matches(text)
            if kind == "folder" or (path.endswith(".bin") and walk.checked(path, kind))
        ]
        if not stores:
            raise MissingFileError(
                f"{argument}: {shown(text)}: no .bin file or folder matches (working directory: "
                f"{os.getcwd()})."
            )
        walk.warn()
        found += sorted(stores)
    return tuple(map(Path, once(found, argument, _identity)))


def _identity(path: str) -> str:
    """Return the same for the prefix of a store and for either of its two files."""
    return os.path.realpath(path).removesuffix(".bin").removesuffix(".idx")


def _names(path: str) -> tuple[str, ...]:
    """Return the paths of which one is there if a path or prefix of a store is."""
    return path, f"{path}.bin", f"{path}.idx"


def is_bare(path: Path) -> bool:
    """Whether a path means a file of bare ids: a ``.bin`` without an index beside it."""
    return path.suffix == ".bin" and not path.is_dir() and not path.with_suffix(".idx").is_file()
