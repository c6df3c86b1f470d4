"""Which documents validate: never one that trains, never a copy of one, and always some."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest

from lightning_llm.data import corpus as corpus_module
from lightning_llm.data.corpus import ByHash, FileCorpus, FileTail, Tail, Whole, plan_split
from lightning_llm.data.sources import SourceStats


def jsonl(path: Path, texts: list[str]) -> FileCorpus:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return FileCorpus((path,))


def parts_of(split) -> dict[str, list[str]]:
    parts = defaultdict(list)
    for part, document in split.documents(SourceStats()):
        parts[part].append("".join(document.pieces))
    return parts


def test_without_a_fraction_everything_trains(tmp_path):
    corpus = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    split = plan_split(corpus, 0.0, seed=0)
    assert split == Whole(corpus)
    assert parts_of(split) == {"train": ["one", "two"]}


def test_many_documents_are_divided_by_hash(tmp_path):
    texts = [f"document {i}" for i in range(3_000)]
    corpus = jsonl(tmp_path / "a.jsonl", texts)
    split = plan_split(corpus, 0.1, seed=3)
    assert isinstance(split, ByHash)
    parts = parts_of(split)
    assert sorted(parts["train"] + parts["val"]) == sorted(texts)
    assert 240 < len(parts["val"]) < 360
    assert parts_of(plan_split(corpus, 0.1, seed=3)) == parts
    assert parts_of(plan_split(corpus, 0.1, seed=4)) != parts
    # The side depends on the text alone, not on what else there is.
    fewer = parts_of(ByHash(jsonl(tmp_path / "b.jsonl", texts[::2]), 0.1, seed=3))
    assert set(fewer["val"]) <= set(parts["val"])


def test_a_copy_never_validates_what_trains(tmp_path):
    corpus = jsonl(tmp_path / "a.jsonl", [f"text {i % 40}" for i in range(400)])
    parts = parts_of(plan_split(corpus, 0.3, seed=0))
    assert parts["val"]
    assert not set(parts["val"]) & set(parts["train"])


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_one_plain_file_is_cut_as_a_string_would_be(tmp_path, fraction):
    text = "To be, or not to be.\nThat is it.\n" * 400
    (tmp_path / "a.txt").write_text(text)
    split = plan_split(FileCorpus((tmp_path / "a.txt",)), fraction, seed=0)
    assert isinstance(split, FileTail)
    cut = int(len(text) * (1 - fraction))
    assert parts_of(split) == {"train": [text[:cut]], "val": [text[cut:]]}


def test_the_cut_falls_between_characters(tmp_path):
    text = "äöü字🙂" * 50
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for fraction in (0.11, 0.12, 0.13, 0.14, 0.5):
        parts = parts_of(plan_split(FileCorpus((tmp_path / "a.txt",)), fraction, seed=0))
        assert parts["train"][0] + parts["val"][0] == text


def test_one_document_of_another_kind_is_cut_by_characters(tmp_path):
    text = "Wörter und Wörter.\n" * 300
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    split = plan_split(FileCorpus((path,)), 0.1, seed=0)
    cut = int(len(text) * (1 - 0.1))
    assert split == Tail(FileCorpus((path,)), 0, cut)
    assert parts_of(split) == {"train": [text[:cut]], "val": [text[cut:]]}


def test_few_documents_give_the_end_of_the_longest(tmp_path):
    texts = ["a" * 100, "b" * 700, "c" * 200]
    corpus = jsonl(tmp_path / "a.jsonl", texts)
    # With this seed no document falls on the other side.
    split = plan_split(corpus, 0.1, seed=0)
    assert split == Tail(corpus, 1, 600)
    parts = parts_of(split)
    assert parts == {"train": ["a" * 100, "b" * 600, "c" * 200], "val": ["b" * 100]}


def test_the_longest_document_gives_at_most_half(tmp_path):
    corpus = jsonl(tmp_path / "a.jsonl", ["same"] * 10)
    split = plan_split(corpus, 0.4, seed=0)
    assert split == Tail(corpus, 0, 2)
    assert parts_of(split)["val"] == ["me"]


def test_a_cut_inside_many_pieces(tmp_path, monkeypatch):
    text = "".join(f"line {i}\n" for i in range(1_000))
    monkeypatch.setattr("lightning_llm.data.readers_rows.PIECE_BYTES", 97)
    corpus = jsonl(tmp_path / "a.jsonl", [text])
    for cut in (0, 1, 96, 97, 98, 5_000, len(text)):
        parts = parts_of(Tail(corpus, 0, cut))
        assert (parts["train"], parts["val"]) == ([text[:cut]], [text[cut:]])


def test_only_the_first_documents(tmp_path):
    corpus = jsonl(tmp_path / "a.jsonl", ["one", "two", "three"])
    limited = FileCorpus(corpus.files, max_documents=2)
    assert parts_of(Whole(limited)) == {"train": ["one", "two"]}


def test_planning_stops_when_both_sides_have_a_document(tmp_path, monkeypatch):
    corpus = jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(1_000)])
    read = []
    documents = corpus_module.read_documents

    def counting(*args, **kwargs):
        for document in documents(*args, **kwargs):
            read.append(document.source)
            yield document

    monkeypatch.setattr(corpus_module, "read_documents", counting)
    plan_split(corpus, 0.5, seed=0)
    assert len(read) < 50
