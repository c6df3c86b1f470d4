"""`TokenDataModule`: from token ids that are on disk already to packed batches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from lightning_llm.data.argument_problems import (
    constructor_arguments,
    packing_problems,
    size_problems,
)
from lightning_llm.data.corpus import Part
from lightning_llm.data.packing import ConcatWindows, PackedDocuments, Packing, pack
from lightning_llm.data.prepared_datamodule import PreparedDataModule
from lightning_llm.data.raw_tokens import RawTokenStore, TokenDtype
from lightning_llm.data.several_stores import SeveralRows, SeveralStores
from lightning_llm.data.store import TokenStore
from lightning_llm.data.stored_tokens import StoredTokens, expand_stores
from lightning_llm.data.text_arguments import tokenizer_spec
from lightning_llm.data.tokenizer import TokenizerSpec
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PARTS: tuple[Part, ...] = get_args(Part)
_AT_LEAST = {
    "vocab_size": 1,
    "eos_id": 0,
    "seq_len": 1,
    "micro_batch_size": 1,
    "val_micro_batch_size": 1,
    "num_workers": 0,
}


class TokenDataModule(PreparedDataModule):
    """Train a language model on token ids that are on disk already.

    A store is a folder that `TokenStoreWriter` wrote, the prefix of Megatron-LM's ``.bin`` and
    ``.idx``, or a ``.bin`` of bare ids as nanoGPT, llm.c and modded-nanogpt write it (see
    `lightning_llm.data.RawTokenStore`). It is memory-mapped where it lies: nothing is copied or
    encoded. Batches are those of `TextDataModule`; no row goes on in the next store.

    Args:
        train_store: The store to train on, or several, or a pattern such as ``shards/*.bin``.
        val_store: What validates, likewise.
        test_store: What tests, likewise.
        tokenizer: The tokenizer that made the ids: a folder, a ``tokenizer.json`` or a name on the
            hub, or a `TokenizerSpec` of one, with the ``add_bos`` it encoded with. Without it the
            model trains as well, but cannot generate text.
        vocab_size: Number of ids of the vocabulary; by default of the tokenizer or the stores.
        eos_id: The id that ends a document in files of bare ids; by default the tokenizer's.
        dtype: Of the ids in such files; see `RawTokenStore`.
        seq_len: Tokens in a row (T).
        micro_batch_size: Rows in a batch of one rank (B).
        val_micro_batch_size: The same for validation, test and prediction; by default equal.
        packing: ``concat``, ``best_fit`` or ``pad``, as in `TextDataModule`.
        mask_documents: Keep the documents of a row apart, as in `TextDataModule`.
        drop_last: Leave out the last, incomplete micro-step of an epoch instead of filling it up.
        seed: Of the order of samples.
        num_workers: Processes that build batches; 0 is the fastest here.
        strict_resume: Refuse a checkpoint that was trained on other data.
        cache_dir: Where it is kept which files were checked; see `TextDataModule`.

    Example:
        >>> data = TokenDataModule(                                            # doctest: +SKIP
        ...     train_store="train.bin", val_store="val.bin", vocab_size=50257, eos_id=50256
        ... )

    Raises:
        ValueError: One error that lists every problem with the arguments.
    """

    give_val = "val_store"
    give_test = "test_store"

    def __init__(
        self,
        *,
        train_store: str | Path | list[str | Path],
        val_store: str | Path | list[str | Path] | None = None,
        test_store: str | Path | list[str | Path] | None = None,
        tokenizer: str | Path | TokenizerSpec | None = None,
        vocab_size: int | None = None,
        eos_id: int | None = None,
        dtype: TokenDtype | None = None,
        seq_len: int = 512,
        micro_batch_size: int = 8,
        val_micro_batch_size: int | None = None,
        packing: Packing = "concat",
        mask_documents: bool | None = None,
        drop_last: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        strict_resume: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        arguments = constructor_arguments(locals())
        _check(arguments)
        given = {part: arguments[f"{part}_store"] for part in _PARTS}
        stored = StoredTokens(
            {
                part: expand_stores(paths, f"{part}_store")
                for part, paths in given.items()
                if paths is not None
            },
            None if tokenizer is None else _loaded(tokenizer),
            vocab_size,
            eos_id,
            dtype,
            cache_dir,
        )
        super().__init__(arguments, None)
        self.packing = packing
        self.mask_documents = packing == "best_fit" if mask_documents is None else mask_documents
        self._stored = stored

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:  # type: ignore[override]
        """The tokenizer that made the ids; None if it was not given."""
        return self._stored.tokenizer

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids: the rows an embedding needs."""
        return self._stored.known_ids

    @cached_property
    def token_byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """UTF-8 bytes of text that each id stands for (V,); None where that is unknowable."""
        return None if self.tokenizer is None else super().token_byte_lengths

    def prepare_data(self) -> None:
        """Check the ids of files that were not checked yet."""
        self._stored.prepare()

    def _open(self) -> dict[Part, TokenStore]:
        return self._stored.prepare()

    def _pack(self, part: Part) -> ConcatWindows | PackedDocuments | SeveralRows:
        store = self._stores[part]
        if isinstance(store, SeveralStores):
            return SeveralRows([self._pack_one(one) for one in store.stores])
        return self._pack_one(store)

    def _pack_one(self, store: TokenStore) -> ConcatWindows | PackedDocuments:
        apart = self.mask_documents or self.packing != "concat"
        if apart and isinstance(store, RawTokenStore) and store.eos_id is None:
            raise InvalidValueError(
                f"{store.path}: packing={self.packing!r} with mask_documents={self.mask_documents} "
                "keeps documents apart, and nothing says where they end. Give eos_id, the id that "
                "ends a document (50256 for GPT-2's), or the tokenizer."
            )
        return pack(
            store,
            self.packing,
            self.seq_len,
            mask_documents=self.mask_documents,
            pad_id=0 if self.tokenizer is None else self.tokenizer.pad_token_id,
        )


def _loaded(tokenizer: str | Path | TokenizerSpec | Mapping[str, Any]) -> TokenizerSpec:
    spec = tokenizer_spec(tokenizer)
    if spec.pretrained is None:
        raise InvalidValueError(
            f"TokenDataModule: tokenizer={tokenizer!r} would be trained, and the ids are there "
            "already. Give the one that made them: TokenizerSpec(pretrained=...)."
        )
    return spec


def _check(arguments: Mapping[str, Any]) -> None:
    problems = packing_problems(arguments) + size_problems(arguments, _AT_LEAST)
    if problems:
        raise InvalidValueError("TokenDataModule: " + "; ".join(problems))
