"""Rows to tokenizer and stores of examples, once: the result is cached by the content it is of."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from lightning_llm.data.cache import (
    cache_key,
    cache_root,
    cached_tokenizer,
    make_once,
    open_cached,
    write_json,
)
from lightning_llm.data.corpus import Part, part_by_hash
from lightning_llm.data.examples import Example, ExampleEncoder, RowErrors, Task, check_text
from lightning_llm.data.packed_examples import StoredTexts
from lightning_llm.data.rows import Row, RowSource, readable
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
# Part of every cache key: raise it when the same rows and options give other stores.
_FORMAT = 3
_DONE = "prepared.json"
_EXAMPLES_AT_A_TIME = 4096


class StoredExamples(NamedTuple):
    """The examples of one part.

    Attributes:
        store: Token ids, one document per example.
        targets: The same documents, 1 where the id is a target.
        texts: Prompts and references; None for the training part.
    """

    store: TokenStore
    targets: TokenStore
    texts: StoredTexts | None


@dataclass(frozen=True)
class PreparedExamples:
    """The cache entry of rows, a task and a tokenizer.

    All processes of a run may ask at once: one does the work, the others wait.

    Attributes:
        sources: Rows by part; without ``train`` the tokenizer is a pretrained one.
        task: From rows to examples.
        tokenizer_spec: Trained on the training rows only, or loaded.
        val_fraction: Share of the training rows that validates, if no validation rows are given.
        seed: Of that split.
        errors: ``raise`` at the first row that is no example, or ``skip`` such rows.
        cache_dir: See `lightning_llm.data.cache.cache_root`.
    """

    sources: Mapping[Part, RowSource]
    task: Task
    tokenizer_spec: TokenizerSpec = field(default_factory=TokenizerSpec)
    val_fraction: float = 0.0
    seed: int = 0
    errors: RowErrors = "raise"
    cache_dir: str | Path | None = None

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Hash of the rows of each source."""
        root = cache_root(self.cache_dir)
        return {part: source.fingerprint(root) for part, source in self.sources.items()}

    @cached_property
    def path(self) -> Path:
        """Folder of the cache entry."""
        spec = self.tokenizer_spec
        content = {
            "format": _FORMAT,
            "rows": self.fingerprints,
            **self._options(),
            "tokenizer": self.task.adapted(spec).fingerprint()
            if spec.pretrained is None
            else [tokenizer_fingerprint(self.tokenizer), str(self.tokenizer.chat_template)],
        }
        return cache_root(self.cache_dir) / cache_key(content)

    @cached_property
    def tokenizer_path(self) -> Path:
        """Folder of the trained tokenizer, whatever is validated or tested beside."""
        content = {
            "format": _FORMAT,
            "rows": self.fingerprints["train"],
            **self._options(),
            "tokenizer": self.task.adapted(self.tokenizer_spec).fingerprint(),
        }
        return cache_root(self.cache_dir) / f"tokenizer-{cache_key(content)}"

    def _options(self) -> dict[str, Any]:
        return {
            "task": [type(self.task).__name__, self.task.options()],
            "split": [self.val_fraction, self.seed] if self._splits else None,
            **({"errors": self.errors} if self.errors != "raise" else {}),
        }

    @property
    def parts(self) -> list[Part]:
        """The parts that have examples."""
        own: list[Part] = ["val"] if self._splits else []
        return [*self.sources, *own]

    @property
    def _splits(self) -> bool:
        return "train" in self.sources and "val" not in self.sources and self.val_fraction > 0

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer: loaded, or trained on the training rows and kept in the cache."""
        if self.tokenizer_spec.pretrained is not None:
            tokenizer = load_tokenizer(
                self.tokenizer_spec.pretrained, add_bos=self.tokenizer_spec.add_bos
            )
            self.task.equip(tokenizer)
            return tokenizer
        folder = self.tokenizer_path
        return cached_tokenizer(folder, self._trained_tokenizer, entry=folder)

    def _trained_tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = train_tokenizer(self.task.adapted(self.tokenizer_spec), self._training_texts())
        self.task.equip(tokenizer)
        return tokenizer

    def _training_texts(self) -> Iterator[str]:
        rows = 0
        trained = False
        for part, row in self._rows("train"):
            rows += 1
            if part != "train":
                continue
            try:
                texts = list(self.task.texts(readable(row)))
            except InvalidValueError:
                if self.errors == "raise":
                    raise
                continue
            trained = True
            yield from texts
        if rows and not trained:
            raise InvalidValueError(
                f"none of {rows} rows is left to train on.{self._split_remedy('train')}"
            )

    def _split_remedy(self, part: Part) -> str:
        """Return what to do about a part that the split by content left empty."""
        if not self._splits or part == "test":
            return ""
        size = "larger" if part == "val" else "smaller"
        return (
            f" val_fraction={self.val_fraction} of the rows validate, equal ones together: "
            f"give more rows, a {size} fraction or validation data."
        )

    def prepare(self) -> dict[Part, StoredExamples]:
        """Return the examples of each part, writing them if they are not in the cache.

        Raises:
            ValueError: A row is no example, or a part has none; the place is named.
            OSError: The cache cannot be written.
        """
        done = self.path / _DONE
        if not done.exists():
            tokenizer = self.tokenizer  # outside of the lock: training may take one of its own
            make_once(done, lambda: self._write(tokenizer), entry=self.path)
        return {part: self._open(part) for part in self.parts}

    def _open(self, part: Part) -> StoredExamples:
        from lightning_llm.generation.text import BarePrompt

        texts = None
        if part != "train":
            with open(self.path / f"{part}.jsonl", encoding="utf-8") as stream:
                rows = [json.loads(line) for line in stream]
            prompts = [BarePrompt(text) if is_bare else text for text, _, is_bare in rows]
            texts = StoredTexts(prompts, [row[1] for row in rows])
        store, targets = (open_cached(self.path, name) for name in (part, f"{part}.targets"))
        return StoredExamples(store, targets, texts)

    def _rows(self, source: Part) -> Iterator[tuple[Part, Row]]:
        """Yield the rows of a source and the part that each belongs to."""
        for row in self.sources[source].rows():
            yield self._part(row) if source == "train" and self._splits else source, row

    def _part(self, row: Row) -> Part:
        # By content: equal rows fall on the same side, so no duplicate leaks into validation.
        content = json.dumps(row[0], sort_keys=True, default=str).encode()
        return part_by_hash(content, self.val_fraction, self.seed)

    def _write(self, tokenizer: PreTrainedTokenizerFast) -> None:
        _LOG.info("encoding into %s", self.path)
        counts = {part: {"examples": 0, "tokens": 0, "targets": 0} for part in self.parts}
        skipped = 0
        bad = _BadRows(self.errors)
        with ExitStack() as stack:
            outputs = {
                part: _PartWriter(stack, self.path, part, tokenizer, cache_key(self.fingerprints))
                for part in self.parts
            }
            encode = ExampleEncoder(tokenizer)
            every = itertools.chain.from_iterable(self._rows(source) for source in self.sources)
            while chunk := list(itertools.islice(every, _EXAMPLES_AT_A_TIME)):
                made = []
                for part, row in chunk:
                    with bad:
                        example = self.task.example(readable(row), tokenizer)
                        if example is not None:
                            check_text(example, row[1])
                        made.append((part, example))
                kept = [(part, example) for part, example in made if example is not None]
                skipped += len(made) - len(kept)
                encoded = encode([example for _, example in kept])
                for (part, example), (ids, marks) in zip(kept, encoded):
                    outputs[part].add(example, ids, marks)
                    count = counts[part]
                    count["examples"] += 1
                    count["tokens"] += len(ids)
                    count["targets"] += int(marks.sum())
            self._check_counts(counts, skipped, bad)
        report = {"format": _FORMAT, "parts": counts, "skipped": skipped, "errors": bad.report()}
        write_json(self.path / _DONE, report)
        _LOG.info("prepared %s", json.dumps(report))
        if skipped:
            _LOG.warning("%d rows were left out: they are empty", skipped)
        if bad.count:
            _LOG.warning(
                'errors="skip" left out %d rows that are no examples; the first: %s',
                bad.count,
                bad.first,
            )
        for remark in self.task.remarks():
            _LOG.warning("%s", remark)

    def _check_counts(
        self, counts: dict[Part, dict[str, int]], skipped: int, bad: _BadRows
    ) -> None:
        for part, count in counts.items():
            if count["targets"]:
                continue
            raise InvalidValueError(
                f"the {part} part has no example with a target ({count['examples']} examples; "
                f"{skipped} rows of all parts were left out as empty{bad.summary()})."
                f"{self._split_remedy(part)}"
            )


class _BadRows:
    """Rows that are no examples: passes their errors on, or counts them."""

    def __init__(self, errors: RowErrors) -> None:
        self.count = 0
        self.first = ""
        self._skips = errors == "skip"

    def __enter__(self) -> None:
        """Begin a row."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Count the row if it is wrong."""
        if not (self._skips and isinstance(error, InvalidValueError)):
            return False
        self.count += 1
        self.first = self.first or str(error)
        return True

    def report(self) -> dict[str, Any] | None:
        """Return count and first error, None without any."""
        return {"rows": self.count, "first": self.first} if self.count else None

    def summary(self) -> str:
        """Return a part of a sentence on the rows, empty without any."""
        if not self.count:
            return ""
        return f', {self.count} by errors="skip", the first of them: {self.first}'


class _PartWriter:
    """The files of one part."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        part: Part,
        tokenizer: PreTrainedTokenizerFast,
        source_fingerprint: str,
    ) -> None:
        self._texts: TextIO | None = None
        names = (part, f"{part}.targets")
        for name in names:  # of a process that was killed before all were complete
            shutil.rmtree(folder / name, ignore_errors=True)
        sizes = (vocabulary_size(tokenizer), 2)
        self._ids, self._marks = (
            stack.enter_context(
                TokenStoreWriter(
                    folder / name,
                    vocab_size=size,
                    tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
                    source_fingerprint=source_fingerprint,
                )
            )
            for name, size in zip(names, sizes)
        )
        if part != "train":
            path = folder / f"{part}.jsonl"
            self._texts = stack.enter_context(path.open("w", encoding="utf-8"))

    def add(self, example: Example, ids: Any, marks: Any) -> None:
        self._ids.add(ids)
        self._marks.add(marks)
        if self._texts is not None:
            from lightning_llm.generation.text import BarePrompt

            is_bare = isinstance(example.prompt, BarePrompt)
            row = [example.prompt, example.references, is_bare]
            self._texts.write(json.dumps(row, ensure_ascii=True) + "\n")
