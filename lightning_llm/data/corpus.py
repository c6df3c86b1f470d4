"""Where the documents of a run come from, and which of them validate."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lightning_llm.data.dataset_split import DatasetSplit
from lightning_llm.data.sources import (
    DecodeErrors,
    Document,
    SourceStats,
    fingerprint_files,
    is_plain_text,
    read_documents,
    split_file_range,
)

Part = Literal["train", "val", "test"]
Labelled = Iterator[tuple[Part, Document]]


class Corpus(Protocol):
    """A repeatable stream of documents."""

    def documents(self, stats: SourceStats) -> Iterator[Document]:
        """Yield every document, always in the same order, and count them in ``stats``."""

    def fingerprint(self) -> str:
        """Return a hash that changes with the content."""


@dataclass(frozen=True)
class FileCorpus:
    """The documents of files, in the order of the files.

    Attributes:
        files: As `lightning_llm.data.sources.expand_files` returns them.
        text_field: Key or column of the text, in files of rows.
        errors: What to do with text that is not valid Unicode.
        max_documents: Stop after this many.
    """

    files: tuple[Path, ...]
    text_field: str = "text"
    errors: DecodeErrors = "strict"
    max_documents: int | None = None

    def documents(self, stats: SourceStats) -> Iterator[Document]:
        """Yield the documents of the files, one after the other, and count them."""
        every = itertools.chain.from_iterable(
            read_documents(file, text_field=self.text_field, errors=self.errors, stats=stats)
            for file in self.files
        )
        return itertools.islice(every, self.max_documents)

    def fingerprint(self) -> str:
        """Return a hash of names and contents of the files."""
        return fingerprint_files(self.files)


@dataclass(frozen=True)
class DatasetCorpus(DatasetSplit):
    """The rows of one split of a Hugging Face dataset, each a document.

    Attributes:
        text_field: Column of the text.
        max_documents: Stop after this many.
    """

    text_field: str = "text"
    max_documents: int | None = None

    def documents(self, stats: SourceStats) -> Iterator[Document]:
        """Yield a document for each row, and count them."""
        from lightning_llm.interop.hf.datasets import read_dataset

        return read_dataset(
            self.path,
            **self.where(),
            text_field=self.text_field,
            max_documents=self.max_documents,
            stats=stats,
        )

    def fingerprint(self) -> str:
        """Return a hash of the split, as far as its content can be known."""
        return self.content_fingerprint()


@dataclass(frozen=True)
class Whole:
    """Every document of a corpus belongs to one part."""

    corpus: Corpus
    part: Part = "train"

    def documents(self, stats: SourceStats) -> Labelled:
        """Yield each document with its part, and count them."""
        for document in self.corpus.documents(stats):
            yield self.part, document


def part_by_hash(content: bytes, fraction: float, seed: int) -> Part:
    """Return ``"val"`` for a share ``fraction`` of all contents, ``"train"`` for the others."""
    digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()[:64]).digest()
    return "val" if int.from_bytes(digest, "little") < fraction * 2**64 else "train"


@dataclass(frozen=True)
class ByHash:
    """A document validates if the hash of its beginning says so.

    Equal documents fall on the same side, so that a duplicate never leaks into validation.
    """

    corpus: Corpus
    fraction: float
    seed: int

    def documents(self, stats: SourceStats) -> Labelled:
        """Yield each document with its part, and count them."""
        for document in self.corpus.documents(stats):
            pieces = iter(document.pieces)
            first = next(pieces, "")
            whole = Document(itertools.chain([first], pieces), document.source)
            yield self._part(first), whole

    def _part(self, text: str) -> Part:
        return part_by_hash(text.encode(), self.fraction, self.seed)


@dataclass(frozen=True)
class Tail:
    """The last part of one document validates, everything else trains.

    Attributes:
        corpus: All documents.
        document: Number of the document that is cut.
        cut: Its characters that train.
    """

    corpus: Corpus
    document: int
    cut: int

    def documents(self, stats: SourceStats) -> Labelled:
        """Yield each document with its part, and count them."""
        for number, document in enumerate(self.corpus.documents(stats)):
            if number == self.document:
                yield from self._halves(document)
            else:
                yield "train", document

    def _halves(self, document: Document) -> Labelled:
        pieces = iter(document.pieces)
        rest: list[str] = []

        def head() -> Iterator[str]:
            left = self.cut
            for piece in pieces:
                if len(piece) >= left:
                    rest.append(piece[left:])
                    yield piece[:left]
                    return
                left -= len(piece)
                yield piece

        yield "train", Document(head(), document.source)
        yield "val", Document(itertools.chain(rest, pieces), document.source)


@dataclass(frozen=True)
class FileTail:
    """The last bytes of one plain-text file validate; nothing has to be read to find the place."""

    corpus: FileCorpus
    fraction: float

    def documents(self, stats: SourceStats) -> Labelled:
        """Yield each document with its part, and count them."""
        (file,) = self.corpus.files
        for part, (start, stop) in zip(("train", "val"), split_file_range(file, 1 - self.fraction)):
            for document in read_documents(
                file, errors=self.corpus.errors, start=start, stop=stop, stats=stats
            ):
                yield part, document  # type: ignore[misc]


Split = Whole | ByHash | Tail | FileTail


def plan_split(corpus: Corpus, fraction: float, seed: int) -> Split:
    """Decide which documents validate.

    Each document by its hash, unless that leaves one side empty, as with a single document or very
    few: then the end of the longest document validates, ``fraction`` of the corpus but at most half
    of that document.

    Args:
        corpus: Read until both sides have a document, to its end only if one stays empty.
        fraction: Share of the documents or of the text that validates; 0 for none.
        seed: Of the hash.
    """
    if fraction == 0:
        return Whole(corpus)
    if (
        isinstance(corpus, FileCorpus)
        and len(corpus.files) == 1
        and is_plain_text(corpus.files[0], compressed=False)
    ):
        return FileTail(corpus, fraction)
    by_hash = ByHash(corpus, fraction, seed)
    seen: set[Part] = set()
    longest = longest_number = total = 0
    for number, (part, document) in enumerate(by_hash.documents(SourceStats())):
        seen.add(part)
        if len(seen) == 2:
            return by_hash
        length = sum(map(len, document.pieces))
        total += length
        if length > longest:
            longest, longest_number = length, number
    validating = min(total - int(total * (1 - fraction)), longest // 2)
    return Tail(corpus, longest_number, longest - validating)
