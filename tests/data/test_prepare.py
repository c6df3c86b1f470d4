"""Preparing text: done once, done again when anything changed, whole after any crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_llm.data import TokenizerSpec, cache, prepare
from lightning_llm.data.corpus import FileCorpus
from lightning_llm.data.prepare import PreparedText

BYTE = TokenizerSpec("byte")
EOS = 256


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in range(50)))
    return path


def prepared(source: Path, **options) -> PreparedText:
    defaults = {"tokenizer_spec": BYTE, "cache_dir": source.parent / "cache"}
    return PreparedText(FileCorpus((source,)), **(defaults | options))


def ids(text: str) -> list[int]:
    return [*text.encode(), EOS]


def test_documents_become_stores(source, tmp_path):
    other = tmp_path / "b.txt"
    other.write_text("validation")
    corpus = FileCorpus((other,))
    stores = prepared(source, val=corpus, test=corpus).prepare()
    assert [d.tolist() for d in stores["train"]] == [ids(f"text number {i}") for i in range(50)]
    for part in ("val", "test"):
        assert [document.tolist() for document in stores[part]] == [ids("validation")]
    for store in stores.values():
        store.verify()
        assert store.vocab_size == 257


def test_what_is_prepared_is_not_prepared_again(source, monkeypatch):
    first = prepared(source, val_fraction=0.2)
    stores = first.prepare()
    assert set(stores) == {"train", "val"}
    assert stores["train"].num_tokens + stores["val"].num_tokens == sum(
        len(ids(f"text number {i}")) for i in range(50)
    )
    monkeypatch.setattr(prepare, "encode_documents", None)
    monkeypatch.setattr(prepare, "train_tokenizer", None)
    second = prepared(source, val_fraction=0.2)
    assert second.prepare()["train"].fingerprint == stores["train"].fingerprint
    assert second.tokenizer.eos_token_id == EOS
    (source.parent / "elsewhere").mkdir()
    moved = source.rename(source.parent / "elsewhere" / source.name)
    cache = source.parent / "cache"
    assert prepared(moved, val_fraction=0.2, cache_dir=cache).path == first.path


def test_one_changed_byte_makes_a_new_entry(source):
    first = prepared(source)
    before = first.prepare()["train"]
    content = source.read_bytes()
    source.write_bytes(content.replace(b"number 7", b"Number 7", 1))
    second = prepared(source)
    after = second.prepare()["train"]
    assert second.path != first.path
    assert (before[7] != after[7]).sum() == 1
    source.write_bytes(content)
    assert prepared(source).path == first.path


@pytest.mark.parametrize(
    "change",
    [
        {"val_fraction": 0.2},
        {"val_fraction": 0.2, "seed": 1},
        {"val_fraction": 0.3},
        {"tokenizer_spec": TokenizerSpec("char")},
        {"tokenizer_spec": TokenizerSpec("char", special_tokens=["<|x|>"])},
    ],
)
def test_each_option_has_an_entry_of_its_own(source, change):
    entries = {prepared(source).path, prepared(source, seed=5).path}
    assert len(entries) == 1  # a seed without a split changes nothing
    assert prepared(source, **change).path not in entries
    limited = PreparedText(
        FileCorpus((source,), max_documents=3),
        tokenizer_spec=BYTE,
        cache_dir=source.parent / "cache",
    )
    assert limited.path not in entries
    assert len(limited.prepare()["train"]) == 3


def test_a_pretrained_tokenizer_counts_by_content(source, tmp_path):
    for name in ("one", "copy"):
        prepared(source).tokenizer.save_pretrained(tmp_path / name)
    paths = [
        prepared(source, tokenizer_spec=TokenizerSpec(pretrained=str(tmp_path / name))).path
        for name in ("one", "copy")
    ]
    assert paths[0] == paths[1]
    assert paths[0] != prepared(source).path


def test_the_tokenizer_sees_the_training_text_only(tmp_path):
    text = "abcdef\n" * 90 + "uvwxyz\n" * 10
    (tmp_path / "a.txt").write_text(text)
    entry = prepared(tmp_path / "a.txt", tokenizer_spec=TokenizerSpec("char"), val_fraction=0.1)
    known = set(entry.tokenizer.get_vocab())
    assert set("abcdef\n") <= known
    assert not known & set("uvwxyz")
    assert entry.tokenizer.unk_token_id in entry.prepare()["val"][0]
    whole = prepared(tmp_path / "a.txt", tokenizer_spec=TokenizerSpec("char"))
    assert "z" in whole.tokenizer.get_vocab()


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n{"text": ""}\n'])
def test_no_text_is_an_error_with_counts(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    message = rf"train part has no text: 0 documents .* {content.count('{')} were empty"
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path / "a.jsonl").prepare()
    assert not list((tmp_path / "cache").glob("*/train"))


def test_the_first_file_left_out_is_named(source, tmp_path, caplog):
    invalid = [tmp_path / "b.txt", tmp_path / "c.txt"]
    for path in invalid:
        path.write_bytes("清晨".encode("gbk"))
    some = FileCorpus((source, *invalid), errors="skip")
    PreparedText(some, tokenizer_spec=BYTE, cache_dir=tmp_path / "cache").prepare()
    assert f"2 left out as invalid, the first of them {invalid[0]}" in caplog.text
    spec = TokenizerSpec("bpe", vocab_size=300)
    none = FileCorpus(tuple(invalid), errors="skip")
    with pytest.raises(ValueError, match=rf"0 documents .* the first of them {invalid[0]}"):
        PreparedText(none, tokenizer_spec=spec, cache_dir=tmp_path / "cache").prepare()


def test_a_side_without_text_is_named(source, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="the val part has no text: 0 documents with 0 tokens"):
        prepared(source, val=FileCorpus((tmp_path / "empty.txt",))).prepare()


def test_a_broken_line_leaves_no_store(source, tmp_path):
    source.write_text(source.read_text() + "not json\n")
    entry = prepared(source)
    with pytest.raises(ValueError, match=r"a\.jsonl:51"):
        entry.prepare()
    assert sorted(p.name for p in entry.path.iterdir()) == ["tokenizer"]


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from lightning_llm.data import TokenizerSpec, prepare
from lightning_llm.data.corpus import FileCorpus

source, action = Path(sys.argv[1]), sys.argv[2]
encode, train = prepare.encode_documents, prepare.train_tokenizer

def log(word):
    with open(source.with_name("log"), "a") as stream:
        stream.write(word + "\\n")

def slow_encode(documents, tokenizer, writers, *rest):
    log("encoding")
    if action == "die":
        for writer in writers.values():
            writer.add([1, 2, 3])
            writer._flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        time.sleep(60)
    time.sleep(0.3)
    encode(documents, tokenizer, writers, *rest)
    log("encoded")

def logged_train(spec, texts):
    log("training")
    if action == "die training":
        os.kill(os.getpid(), signal.SIGKILL)
    return train(spec, texts)

prepare.encode_documents, prepare.train_tokenizer = slow_encode, logged_train
entry = prepare.PreparedText(
    FileCorpus((source,)), tokenizer_spec=TokenizerSpec("byte"), val_fraction=0.2,
    cache_dir=source.parent / "cache",
)
print(entry.prepare()["train"].fingerprint)
"""


def start(source: Path, action: str = "work") -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(source), action]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def log_of(source: Path) -> list[str]:
    path = source.with_name("log")
    return path.read_text().split("\n")[:-1] if path.exists() else []


@pytest.mark.parametrize("action", ["die", "die training"])
def test_a_killed_run_leaves_nothing_that_counts(source, action):
    killed = start(source, action)
    assert killed.wait(60) == -signal.SIGKILL
    killed.stdout.close()
    entry = prepared(source, val_fraction=0.2)
    assert not list(entry.path.glob("train"))
    stores = entry.prepare()
    stores["train"].verify()
    assert sum(map(len, stores.values())) == 50
    names = {path.name for path in entry.path.iterdir()}
    assert names == {"tokenizer", "train", "val", "prepared.json"}


@pytest.mark.distributed
def test_processes_that_ask_at_once_share_the_work_and_survive_the_worker(source):
    holder = start(source, "hang")
    deadline = time.monotonic() + 60
    while "encoding" not in log_of(source):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    others = [start(source) for _ in range(2)]
    time.sleep(0.5)
    holder.kill()
    holder.wait(60)
    holder.stdout.close()
    outputs = [process.communicate(timeout=60)[0] for process in others]
    assert [process.returncode for process in others] == [0, 0]
    assert len(set(outputs)) == 1
    assert log_of(source) == ["training", "encoding", "encoding", "encoded"]


def test_a_damaged_part_is_not_taken_for_a_whole_one(source):
    entry = prepared(source, val_fraction=0.2)
    entry.prepare()
    data = entry.path / "val" / "tokens.bin"
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"val/tokens\.bin: truncated"):
        prepared(source, val_fraction=0.2).prepare()
    (entry.path / "prepared.json").unlink()  # a run that died before its last word
    stores = prepared(source, val_fraction=0.2).prepare()
    stores["val"].verify()


def test_a_cache_that_is_read_only_serves_what_it_has(source, monkeypatch):
    prepared(source).prepare()

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(cache, "locked", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert len(prepared(source).prepare()["train"]) == 50


def test_long_documents_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_llm.data.readers_text.PIECE_BYTES", 100)
    text = "".join(f"line {i} of the text\n" for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    store = prepared(tmp_path / "a.txt").prepare()["train"]
    assert len(store) == 1
    assert np.array_equal(store[0], ids(text))
