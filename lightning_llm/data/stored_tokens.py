"""Token stores that lie on disk already: opened, and checked against the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_llm.data.cache import cache_root
from lightning_llm.data.corpus import Part
from lightning_llm.data.id_check import check_ids
from lightning_llm.data.raw_tokens import RawTokenStore, TokenDtype
from lightning_llm.data.store import TokenStore
from lightning_llm.data.tokenizer import (
    TokenizerSpec,
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class StoredTokens:
    """Token stores that somebody else prepared.

    Attributes:
        paths: By part.
        tokenizer_spec: The tokenizer that made the ids, to be loaded; None if there is none.
        vocab_size: Number of ids of the vocabulary; None to ask tokenizer or stores.
        eos_id: The id that ends a document; None to ask the tokenizer.
        dtype: Of files of bare ids.
        cache_dir: Where it is kept which files were checked.
    """

    paths: Mapping[Part, Path]
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
        return load_tokenizer(self.tokenizer_spec.pretrained)

    @cached_property
    def known_ids(self) -> int:
        """Number of ids of the vocabulary.

        Raises:
            ValueError: Nothing tells.
        """
        of_tokenizer = None if self.tokenizer is None else vocabulary_size(self.tokenizer)
        if self.vocab_size is not None and self.vocab_size < (of_tokenizer or 0):
            raise ValueError(
                f"vocab_size={self.vocab_size}, but the tokenizer has {of_tokenizer} ids. Leave "
                "vocab_size out, or give at least as many."
            )
        known = self.vocab_size or of_tokenizer
        if known is not None:
            return known
        indexed = [path for path in self.paths.values() if not is_bare(path)]
        sizes = [size for path in indexed if (size := TokenStore(path).vocab_size)]
        if not sizes:
            raise ValueError(
                f"{self.paths['train']}: nothing says how many ids the vocabulary has. Give "
                "vocab_size (50257 for GPT-2's), or the tokenizer that made the ids."
            )
        return max(sizes)

    def open(self, part: Part) -> TokenStore:
        """Open the store of a part, without reading it."""
        path = self.paths[part]
        if not is_bare(path):
            if self.dtype is not None:
                raise ValueError(
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
        stores = {part: self.open(part) for part in self.paths}
        for store in stores.values():
            self._check(store)
        return stores

    def _check(self, store: TokenStore) -> None:
        if store.num_tokens < 2:
            raise ValueError(f"{store.path}: {store.num_tokens} tokens; there is nothing to learn.")
        made_by = store.tokenizer_fingerprint
        if made_by is not None and self.tokenizer is not None:
            given = tokenizer_fingerprint(self.tokenizer)
            if given != made_by:
                raise ValueError(
                    f"{store.path}: its ids were made by another tokenizer (fingerprint "
                    f"{made_by[:12]}) than the one given ({given[:12]}). Give the one that made "
                    "them."
                )
        # A store of ours was checked when it was written.
        written_for = None if isinstance(store, RawTokenStore) else store.vocab_size
        if written_for is None or written_for > self.known_ids:
            check_ids(store, self.known_ids, cache_root(self.cache_dir))


def is_bare(path: Path) -> bool:
    """Whether a path means a file of bare ids: a ``.bin`` without an index beside it."""
    return path.suffix == ".bin" and not path.is_dir() and not path.with_suffix(".idx").is_file()
