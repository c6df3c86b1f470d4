"""Token stores: Megatron-LM's layout, atomic writing, and damage that is always noticed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lightning_llm.data import TokenStore, TokenStoreWriter, megatron_index, store_writer

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6, 7, 8, 255, 0]]


def write(path: Path, documents=DOCUMENTS, vocab_size: int = 256, **options) -> TokenStore:
    with TokenStoreWriter(path, vocab_size=vocab_size, **options) as writer:
        for document in documents:
            writer.add(document)
    return TokenStore(path)


def megatron_read(prefix: Path) -> tuple[np.dtype, list[list[int]]]:
    """Read an indexed dataset by its description alone, with struct and no memory map."""
    index, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code = struct.unpack_from("<QB", index, 9)
    assert version == 1
    sequences, documents = struct.unpack_from("<QQ", index, 18)
    sizes = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    borders = struct.unpack_from(f"<{documents}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * documents
    kind, width = {4: ("i", 4), 8: ("H", 2)}[code]
    read = [
        list(struct.unpack_from(f"<{size}{kind}", data, pointer))
        for size, pointer in zip(sizes, pointers)
    ]
    joined = [
        [token for sequence in read[first:last] for token in sequence]
        for first, last in pairwise(borders)
    ]
    assert sum(sizes) * width == len(data)
    return np.dtype(kind), joined


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "H"), (65_499, "H"), (65_500, "i")])
def test_another_reader_of_the_format_sees_the_same_documents(tmp_path, vocab_size, dtype):
    write(tmp_path / "s", vocab_size=vocab_size)
    assert megatron_read(tmp_path / "s" / "tokens") == (np.dtype(dtype), DOCUMENTS)


def test_round_trip(tmp_path):
    store = write(tmp_path / "s")
    assert [document.tolist() for document in store] == DOCUMENTS
    assert store[-1].tolist() == DOCUMENTS[-1]
    assert (len(store), store.num_tokens, store.vocab_size) == (4, 10, 256)
    assert store.document_offsets.tolist() == [0, 3, 3, 4, 10]
    assert store.tokens(2, 6).tolist() == [3, 4, 5, 6]
    assert not store[0].flags.writeable
    store.verify()
    with pytest.raises(IndexError, match="document 4 of 4"):
        store[4]
    with pytest.raises(IndexError, match="tokens 2:11 of 10"):
        store.tokens(2, 11)


def test_random_documents_in_pieces(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 70_000, rng.integers(0, 50)) for _ in range(300)]
    with TokenStoreWriter(tmp_path / "s", vocab_size=70_000) as writer:
        for document in documents:
            for piece in np.array_split(document, 3):
                writer.extend(piece)
            writer.end_document()
    store = TokenStore(tmp_path / "s")
    assert store.dtype == np.int32
    assert all(np.array_equal(got, expected) for got, expected in zip(store, documents))
    assert len(store) == 300


def test_a_document_too_long_for_one_sequence_stays_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(megatron_index, "MAX_SEQUENCE_TOKENS", 4)
    documents = [list(range(11)), [], [1, 2, 3, 4], [5]]
    store = write(tmp_path / "s", documents)
    assert [document.tolist() for document in store] == documents
    assert store.document_offsets.tolist() == [0, 11, 11, 15, 16]
    assert megatron_read(tmp_path / "s" / "tokens")[1] == documents
    store.verify()


def test_an_empty_store(tmp_path):
    store = write(tmp_path / "s", [])
    assert (len(store), store.num_tokens, store.document_offsets.tolist()) == (0, 0, [0])
    store.verify()


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[1], [2, -3]], r"document 1, position 1: id -3 is not in 0\.\.255"),
        ([[1], [2], [0, 0, 256]], r"document 2, position 2: id 256 is not in 0\.\.255"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(tmp_path, documents, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "s", documents)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_id_in_a_later_piece_is_counted_from_the_start_of_its_document(tmp_path):
    with TokenStoreWriter(tmp_path / "s", vocab_size=256) as writer:
        writer.extend([1, 2, 3])
        with pytest.raises(ValueError, match="document 0, position 4: id 300"):
            writer.extend([4, 300])
        writer.end_document()


@pytest.mark.parametrize("ids", [[1.5, 2.0], ["a"], [[1, 2]], [True, False]])
def test_ids_must_be_integers(tmp_path, ids):
    with pytest.raises(TypeError, match="document 0: expected a flat sequence of integer ids"):
        write(tmp_path / "s", [ids])


def test_the_writer_copies_what_it_is_given(tmp_path):
    buffer = np.array([1, 2], dtype=np.uint16)
    with TokenStoreWriter(tmp_path / "s", vocab_size=256) as writer:
        writer.add(buffer)
        buffer[:] = 9
        writer.add(buffer)
    assert [d.tolist() for d in TokenStore(tmp_path / "s")] == [[1, 2], [9, 9]]


def test_misuse_of_the_writer(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(FileExistsError, match="already exists"):
        TokenStoreWriter(tmp_path / "s", vocab_size=2)
    with pytest.raises(ValueError, match="vocab_size=0 must be"):
        TokenStoreWriter(tmp_path / "t", vocab_size=0)
    with (
        pytest.raises(ValueError, match="last document is open"),
        TokenStoreWriter(tmp_path / "u", vocab_size=2) as writer,
    ):
        writer.extend([1])
    with pytest.raises(ValueError, match="writer is closed"):
        writer.add([1])
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_nothing_appears_before_the_end_and_nothing_after_an_error(tmp_path):
    with TokenStoreWriter(tmp_path / "s", vocab_size=256) as writer:
        writer.add([1])
        assert not (tmp_path / "s").exists()
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "meta.json",
        "tokens.bin",
        "tokens.idx",
    ]
    with pytest.raises(KeyboardInterrupt), TokenStoreWriter(tmp_path / "t", vocab_size=256):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_everything_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1])
    write(tmp_path / "s")
    # tokens, index, metadata and their folder; then the folder that holds the new name
    assert events == ["fsync"] * 4 + ["rename", "fsync"]


@pytest.mark.parametrize("failing", ["flush", "fsync", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, failing):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "flush":

        class FullDisk:
            write, close = full, lambda self: None

    def attempt() -> None:
        with TokenStoreWriter(tmp_path / "s", vocab_size=256) as writer:
            writer.add([1, 2])
            if failing == "flush":
                writer._bin.close()
                writer._bin = FullDisk()
            else:
                monkeypatch.setattr(os, failing, full)

    with pytest.raises(OSError, match="No space left") as caught:
        attempt()
    if failing == "flush":
        assert str(tmp_path / "s") in str(caught.value)
        assert "4 bytes to write" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


CRASHING = """
import os, signal, sys
from lightning_llm.data import TokenStoreWriter
writer = TokenStoreWriter(sys.argv[1], vocab_size=256)
writer.add([1, 2, 3])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_writer_are_removed_and_those_of_a_live_one_are_not(tmp_path):
    killed = subprocess.run([sys.executable, "-c", CRASHING, str(tmp_path / "s")], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".s.writing-")
    live = TokenStoreWriter(tmp_path / "s", vocab_size=256)
    assert not leftover.exists()
    live.add([7])
    write(tmp_path / "s")  # a second writer neither waits for nor harms the first
    live.add([8])
    live.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_fresh_folder_without_a_lock_is_left_to_its_writer(tmp_path):
    young, old = tmp_path / ".s.writing-young", tmp_path / ".s.writing-old"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (1, 1))
    store_writer._remove_stale(tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx"])
def test_any_flipped_bit_is_noticed(tmp_path, name):
    store = write(tmp_path / "s")
    path = tmp_path / "s" / name
    for byte in range(path.stat().st_size):
        flip(path, byte)
        with pytest.raises(ValueError, match=name):
            # Header and length damage shows at opening, the rest in the checksum.
            TokenStore(tmp_path / "s").verify()
        flip(path, byte)
    store.verify()


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx"])
@pytest.mark.parametrize("change", ["truncated", "extended"])
def test_a_changed_length_is_refused_at_opening(tmp_path, name, change):
    write(tmp_path / "s")
    path = tmp_path / "s" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] if change == "truncated" else content + b"\0")
    with pytest.raises(ValueError, match=rf"{name}: truncated or extended|{name}: {change}"):
        TokenStore(tmp_path / "s")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        TokenStore(tmp_path / "s")


def test_metadata_of_another_store_is_refused(tmp_path):
    write(tmp_path / "s")
    meta_path = tmp_path / "s" / "meta.json"
    meta = json.loads(meta_path.read_text())
    meta_path.write_text(json.dumps(meta | {"dtype": "int32"}))
    with pytest.raises(ValueError, match=r"tokens\.idx: holds uint16 tokens, but .*says int32"):
        TokenStore(tmp_path / "s")
    meta_path.write_text(json.dumps(meta | {"format_version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        TokenStore(tmp_path / "s")
    meta_path.write_text(json.dumps(meta)[:40])
    with pytest.raises(ValueError, match=r"meta\.json: damaged metadata"):
        TokenStore(tmp_path / "s")


def test_a_foreign_store_opens_by_prefix_and_says_it_has_no_checksums(tmp_path):
    own = write(tmp_path / "s")
    for suffix in ("bin", "idx"):
        (tmp_path / "s" / f"tokens.{suffix}").rename(tmp_path / f"corpus.v1_text.{suffix}")
    for name in ("corpus.v1_text", "corpus.v1_text.bin", "corpus.v1_text.idx"):
        store = TokenStore(tmp_path / name)
        assert [document.tolist() for document in store] == DOCUMENTS
    assert store.vocab_size is None
    assert store.fingerprint != own.fingerprint
    with pytest.warns(UserWarning, match="no checksums"):
        store.verify()
    # Pointers are the index's third section: one that disagrees with the sizes is found.
    flip(tmp_path / "corpus.v1_text.idx", 34 + 4 * 4 + 8)
    with pytest.raises(ValueError, match="sequence 1 does not start"):
        TokenStore(tmp_path / "corpus.v1_text").verify()


def test_paths_that_hold_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a token store folder nor the prefix"):
        TokenStore(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no tokens\.idx in this folder"):
        TokenStore(tmp_path)
    (tmp_path / "x.idx").write_bytes(b"something else entirely, long enough for a header")
    with pytest.raises(ValueError, match="not an indexed dataset"):
        TokenStore(tmp_path / "x")


def test_fingerprints_follow_the_content(tmp_path):
    first = write(tmp_path / "a").fingerprint
    assert write(tmp_path / "b").fingerprint == first
    assert write(tmp_path / "c", [[*DOCUMENTS[0], 9], *DOCUMENTS[1:]]).fingerprint != first
    # the same stream with other borders
    assert (
        write(tmp_path / "d", [[token for document in DOCUMENTS for token in document]]).fingerprint
        != first
    )
    assert write(tmp_path / "e", tokenizer_fingerprint="t").fingerprint != first


def test_pickling_opens_the_files_again(tmp_path):
    store = write(tmp_path / "s", [list(range(200))] * 50)
    data = pickle.dumps(store)
    assert len(data) < 400
    assert pickle.loads(data)[49].tolist() == list(range(200))
