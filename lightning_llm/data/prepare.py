"""Text to tokenizer and token stores, once: the result is cached by the content it came from."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_llm.data.cache import (
    cache_key,
    cache_root,
    cached_tokenizer,
    make_once,
    open_cached,
    remembered_fingerprint,
    write_json,
)
from lightning_llm.data.corpus import Corpus, FileCorpus, Labelled, Part, Split, Whole, plan_split
from lightning_llm.data.encoding import encode_documents
from lightning_llm.data.fill_in_the_middle import (
    FillInTheMiddle,
    mark_sentinels,
    sentinels_of,
    with_sentinels,
)
from lightning_llm.data.sources import SourceStats
from lightning_llm.data.special_frame import num_special_tokens
from lightning_llm.data.store import TokenStore
from lightning_llm.data.store_writer import TokenStoreWriter
from lightning_llm.data.tokenizer import (
    TokenizerSpec,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)
# Part of every cache key: raise it when the same text and options give other stores.
_FORMAT = 2
_DONE = "prepared.json"


@dataclass(frozen=True)
class PreparedText:
    """The cache entry of a corpus, a tokenizer and the options between them.

    Nothing is read or written before it is needed. All processes of a run may ask at once: one
    does the work, the others wait, and if it dies another one takes over.

    Attributes:
        train: Documents to train on; None where others are evaluated with a pretrained tokenizer.
        tokenizer_spec: Trained on the training part only, or loaded.
        val: Documents that validate; if not given, ``val_fraction`` of ``train`` does.
        test: Documents that test.
        val_fraction: See `lightning_llm.data.corpus.plan_split`.
        seed: Of the split.
        cache_dir: See `lightning_llm.data.cache.cache_root`.
        fim: Which training documents are rearranged; None for none.
    """

    train: Corpus | None
    tokenizer_spec: TokenizerSpec = field(default_factory=TokenizerSpec)
    val: Corpus | None = None
    test: Corpus | None = None
    val_fraction: float = 0.0
    seed: int = 0
    cache_dir: str | Path | None = None
    fim: FillInTheMiddle | None = None

    def __post_init__(self) -> None:
        if self.fim is not None:
            object.__setattr__(self, "tokenizer_spec", with_sentinels(self.tokenizer_spec))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the text of all parts."""
        root = cache_root(self.cache_dir)

        def one(corpus: Corpus | None) -> str | None:
            if isinstance(corpus, FileCorpus):
                return remembered_fingerprint(corpus.files, root, corpus.fingerprint)
            return None if corpus is None else corpus.fingerprint()

        return cache_key({part: one(getattr(self, part)) for part in ("train", "val", "test")})

    @cached_property
    def path(self) -> Path:
        """Folder of the cache entry."""
        spec = self.tokenizer_spec
        content = {
            "format": _FORMAT,
            "text": self.fingerprint,
            "options": self._options(),
            "tokenizer": spec.fingerprint()
            if spec.pretrained is None
            else tokenizer_fingerprint(self._pretrained),
        }
        return cache_root(self.cache_dir) / cache_key(content)

    def _options(self) -> dict[str, Any]:
        """Return what decides the stores beside the text itself; no paths."""
        by_fraction = self._splits
        options: dict[str, Any] = {"split": [self.val_fraction, self.seed] if by_fraction else None}
        for part in ("train", "val", "test"):
            corpus = getattr(self, part)
            keys = ("text_field", "errors", "max_documents", "split", "name")
            options[part] = [getattr(corpus, key, None) for key in keys]
        if self.fim is not None:
            options["fim"] = asdict(self.fim)
        return options

    @cached_property
    def split(self) -> Split:
        """Which training documents validate."""
        assert self.train is not None  # whoever has none takes a pretrained tokenizer
        if not self._splits:
            return Whole(self.train)
        return plan_split(self.train, self.val_fraction, self.seed)

    @cached_property
    def _pretrained(self) -> PreTrainedTokenizerFast:
        assert self.tokenizer_spec.pretrained is not None
        tokenizer = load_tokenizer(
            self.tokenizer_spec.pretrained, add_bos=self.tokenizer_spec.add_bos
        )
        return tokenizer if self.fim is None else mark_sentinels(tokenizer)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer: loaded, or trained on the training part and kept in the cache entry."""
        if self.tokenizer_spec.pretrained is not None:
            return self._pretrained
        return cached_tokenizer(self.path / "tokenizer", self._trained_tokenizer, entry=self.path)

    def _trained_tokenizer(self) -> PreTrainedTokenizerFast:
        stats = SourceStats()
        texts = (
            piece
            for part, document in self.split.documents(stats)
            if part == "train"
            for piece in document.pieces
        )
        try:
            return train_tokenizer(self.tokenizer_spec, texts)
        except ValueError:
            if stats.documents:
                raise
            raise InvalidValueError(
                f"no text to train the tokenizer on: {_counted(stats)}."
            ) from None

    @property
    def parts(self) -> list[Part]:
        """The parts that have a store."""
        has = {"train": self.train, "val": self.val or self._splits, "test": self.test}
        return [part for part in ("train", "val", "test") if has[part]]  # type: ignore[misc]

    @property
    def _splits(self) -> bool:
        return self.train is not None and self.val is None and self.val_fraction > 0

    def prepare(self) -> dict[Part, TokenStore]:
        """Return the store of each part, writing them if they are not in the cache.

        Raises:
            ValueError: A part has no text; the counts say why.
            OSError: The cache cannot be written.
        """
        done = self.path / _DONE
        if not done.exists():
            tokenizer = self.tokenizer  # which takes the lock itself, if it has to be trained
            make_once(done, lambda: self._write(tokenizer), entry=self.path)
        return {part: open_cached(self.path, part) for part in self.parts}

    def _write(self, tokenizer: PreTrainedTokenizerFast) -> None:
        _LOG.info("encoding into %s", self.path)
        for part in self.parts:  # of a process that was killed before all were complete
            shutil.rmtree(self.path / part, ignore_errors=True)
        stats = SourceStats()
        arrange = None
        if self.fim is not None:
            arrange = partial(self.fim.arrange, sentinels=sentinels_of(tokenizer))
        with ExitStack() as stack:
            writers = {
                part: stack.enter_context(
                    TokenStoreWriter(
                        self.path / part,
                        vocab_size=vocabulary_size(tokenizer),
                        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
                        source_fingerprint=self.fingerprint,
                    )
                )
                for part in self.parts
            }
            encode_documents(self._documents(stats), tokenizer, writers, arrange)
            counts = {
                part: {"documents": writer.num_documents, "tokens": writer.num_tokens}
                for part, writer in writers.items()
            }
            self._check_counts(counts, stats, num_special_tokens(tokenizer))
        report = {"format": _FORMAT, "parts": counts, "sources": asdict(stats), **self._options()}
        write_json(self.path / _DONE, report)
        _LOG.info("prepared %s", json.dumps(report))
        if stats.skipped:
            _LOG.warning("not everything is text in UTF-8: %s", _counted(stats))

    def _documents(self, stats: SourceStats) -> Labelled:
        if self.train is not None:
            yield from self.split.documents(stats)
        if self.val is not None:
            yield from Whole(self.val, "val").documents(stats)
        if self.test is not None:
            yield from Whole(self.test, "test").documents(stats)

    def _check_counts(
        self, counts: dict[Part, dict[str, int]], stats: SourceStats, special: int
    ) -> None:
        for part, count in counts.items():
            # The special tokens around a text alone predict nothing worth learning.
            if count["tokens"] <= special * count["documents"]:
                raise InvalidValueError(
                    f"the {part} part has no text: {count['documents']} documents with "
                    f"{count['tokens']} tokens. Over all parts, {_counted(stats)}."
                )


def _counted(stats: SourceStats) -> str:
    first = "" if stats.first_skipped is None else f", the first of them {stats.first_skipped}"
    return (
        f"{stats.documents} documents were read, {stats.empty} were empty and {stats.skipped} "
        f"left out as invalid{first}"
    )
