"""Files of bare token ids: nanoGPT's, llm.c's, and what is wrong with the others."""

from __future__ import annotations

import pickle
import struct
from array import array
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from lightning_llm.data import RawTokenStore, TokenStore
from lightning_llm.data.packing import ConcatWindows, PackedDocuments

EOS = 9
STREAM = [1, 2, 3, EOS, 4, EOS, EOS, 5, 6]
DOCUMENTS = [[1, 2, 3, EOS], [4, EOS], [EOS], [5, 6]]


def write(path: Path, ids: list[int], code: str = "H", header: tuple[int, ...] = ()) -> Path:
    """Write ids with `array` and `struct` alone: the layout is not taken from the reader."""
    head = struct.pack("<256i", *header, *[0] * (256 - len(header))) if header else b""
    path.write_bytes(head + array(code, ids).tobytes())
    return path


def test_a_nanogpt_file(tmp_path: Path) -> None:
    store = RawTokenStore(write(tmp_path / "train.bin", STREAM), eos_id=EOS, vocab_size=10)
    assert (store.num_tokens, store.dtype, store.vocab_size) == (len(STREAM), np.uint16, 10)
    assert [document.tolist() for document in store] == DOCUMENTS
    assert store[-1].tolist() == [5, 6]
    assert store.tokens(2, 5).tolist() == [3, EOS, 4]
    assert not store.tokens(0, 9).flags.writeable
    store.verify()
    with pytest.raises(IndexError, match="document 4 of 4"):
        store[4]


def test_nothing_is_copied(tmp_path: Path) -> None:
    path = write(tmp_path / "train.bin", STREAM)
    store = RawTokenStore(path)
    with open(path, "r+b") as file:
        file.write(array("H", [77]).tobytes())
    assert store.tokens(0, 1).tolist() == [77]


@pytest.mark.parametrize(
    ("code", "magic", "version", "dtype"),
    [("H", 20240520, 1, np.uint16), ("I", 20240801, 7, np.uint32)],
)
def test_a_shard_of_llm_c(tmp_path: Path, code: str, magic: int, version: int, dtype) -> None:
    header = (magic, version, len(STREAM))
    path = write(tmp_path / "shard.bin", STREAM, code, header)
    store = RawTokenStore(path, eos_id=EOS)
    assert store.dtype == dtype
    assert [document.tolist() for document in store] == DOCUMENTS
    assert pickle.loads(pickle.dumps(store))[0].tolist() == DOCUMENTS[0]


def test_without_an_end_of_text_the_file_is_one_document(tmp_path: Path) -> None:
    store = RawTokenStore(write(tmp_path / "t.bin", STREAM))
    assert [document.tolist() for document in store] == [STREAM]
    assert len(RawTokenStore(write(tmp_path / "empty.bin", []))) == 0
    whole = RawTokenStore(write(tmp_path / "whole.bin", STREAM[:4]), eos_id=EOS)
    assert whole.document_offsets.tolist() == [0, 4]


def test_packing_reads_it_as_it_reads_a_store(tmp_path: Path) -> None:
    from lightning_llm.data import TokenStoreWriter

    rng = np.random.default_rng(0)
    documents = [[*rng.integers(0, EOS, n).tolist(), EOS] for n in rng.integers(1, 30, 50)]
    raw = RawTokenStore(write(tmp_path / "t.bin", list(chain.from_iterable(documents))), eos_id=EOS)
    with TokenStoreWriter(tmp_path / "store", vocab_size=10) as writer:
        for document in documents:
            writer.add(document)
    store = TokenStore(tmp_path / "store")
    for packed in (
        lambda source: ConcatWindows(source, 16, mask_documents=True),
        lambda source: PackedDocuments(source, 16),
    ):
        ours, theirs = packed(store), packed(raw)
        assert len(ours) == len(theirs)
        batches = [rows.__getitems__(range(len(rows))) for rows in (ours, theirs)]
        assert batches[0].keys() == batches[1].keys()
        assert all((batches[0][key] == batches[1][key]).all() for key in batches[0])


def test_wide_vocabularies_are_read_as_uint32(tmp_path: Path) -> None:
    path = write(tmp_path / "t.bin", [70_000, 1, 2], "I")
    assert RawTokenStore(path, vocab_size=128_256).tokens(0, 3).tolist() == [70_000, 1, 2]
    assert RawTokenStore(path, dtype="int32").tokens(0, 1).tolist() == [70_000]


def test_pickling_keeps_the_options(tmp_path: Path) -> None:
    path = write(tmp_path / "t.bin", STREAM, "B")
    store = RawTokenStore(path, dtype="uint8", eos_id=EOS, vocab_size=12)
    again = pickle.loads(pickle.dumps(store))
    assert (again.dtype, again.eos_id, again.vocab_size) == (np.uint8, EOS, 12)
    assert again.fingerprint == store.fingerprint


def test_the_fingerprint_follows_the_content_and_its_reading(tmp_path: Path) -> None:
    first = RawTokenStore(write(tmp_path / "a.bin", STREAM), eos_id=EOS).fingerprint
    assert first == RawTokenStore(write(tmp_path / "b.bin", STREAM), eos_id=EOS).fingerprint
    others = [
        RawTokenStore(write(tmp_path / "c.bin", [*STREAM[:-1], 7]), eos_id=EOS),
        RawTokenStore(tmp_path / "a.bin", eos_id=EOS - 1),
        RawTokenStore(tmp_path / "a.bin", eos_id=EOS, dtype="uint8"),
    ]
    assert len({first, *(other.fingerprint for other in others)}) == 4


def test_damage_and_wrong_dtypes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(b"\1" * 7)
    with pytest.raises(ValueError, match=r"7 bytes are no whole number of uint16 ids.*dtype="):
        RawTokenStore(path)
    write(path, [5, 6] * 40, "I")
    with pytest.raises(ValueError, match=r"every second uint16 is 0.*dtype='uint32'"):
        RawTokenStore(path)
    assert RawTokenStore(path, dtype="uint32").num_tokens == 80
    with pytest.raises(ValueError, match="dtype='float32' must be one of uint8, uint16"):
        RawTokenStore(path, dtype="float32")  # type: ignore[arg-type]
    write(path, STREAM, "H", (20240520, 1, len(STREAM) + 1))
    with pytest.raises(ValueError, match=r"its header tells of 10 ids.*truncated"):
        RawTokenStore(path)
    write(path, STREAM, "H", (20240520, 2, len(STREAM)))
    with pytest.raises(ValueError, match=r"magic 20240520 and version 2.*only version 1"):
        RawTokenStore(path)
    write(path, STREAM, "H", (20240520, 1, len(STREAM)))
    with pytest.raises(ValueError, match=r"dtype='uint32'.*header stands for uint16"):
        RawTokenStore(path, dtype="uint32")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        RawTokenStore(tmp_path / "nowhere.bin")


def test_ids_outside_the_vocabulary_are_found(tmp_path: Path) -> None:
    store = RawTokenStore(write(tmp_path / "t.bin", [1, 2, 300, 4]), vocab_size=257)
    with pytest.raises(ValueError, match=r"id 300 at position 2 is not in 0\.\.256"):
        store.verify()
    negative = RawTokenStore(write(tmp_path / "n.bin", [1, -2], "i"), dtype="int32", vocab_size=9)
    with pytest.raises(ValueError, match="id -2 at position 1"):
        negative.verify()


def test_a_token_store_names_the_way_to_read_bare_ids(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="RawTokenStore"):
        TokenStore(write(tmp_path / "train.bin", STREAM))
