"""JSON lines, Parquet and compressed files: rows in order, damage named by file and row."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from source_files import HARD, PACK, json_lines, random_text, texts, write

from lightning_llm.data import readers_base
from lightning_llm.data.sources import (
    SourceStats,
    read_documents,
)

# --- JSON lines ---


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonlines", ".json-lines"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    stats = SourceStats()
    content = "\ufeff" + json_lines([{"text": HARD, "x": 1}, {"text": ""}]) + '\n  \n{"text":"end"}'
    path = write(tmp_path / f"a{suffix}", content)
    assert [(d.source, "".join(d.pieces)) for d in read_documents(path, stats=stats)] == [
        (f"{path}:1", HARD),
        (f"{path}:5", "end"),
    ]
    assert stats == SourceStats(documents=2, empty=1, bytes=len(HARD.encode()) + 3)


def test_json_lines_are_cut_at_line_feeds_alone(tmp_path: Path) -> None:
    rows = [{"body": "a\u2028b\x85c"}, {"body": "d"}]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    assert texts(write(tmp_path / "a.jsonl", content), text_field="body") == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "a"', r"not valid JSON: .* at column 13"),
        ("plain", r"not valid JSON: .* got 'plain"),
        ('["a"]', r"expected a JSON object, got list"),
        ('"text"', r"expected a JSON object, got str"),
        ("[" * 100_000, r"not readable as JSON"),
        ('{"text": ' + "1" * 5000 + "}", r"not readable as JSON"),
        ('{"Text": "a", "id": 3}', r"no key 'text'; it has 'Text', 'id'\. Did you mean 'Text'\?"),
        ("{}", r"no key 'text'; it has none"),
        ('{"text": null}', r"'text': expected a string, got null"),
        ('{"text": 5}', r"'text': expected a string, got int"),
        ('{"text": ["a"]}', r"'text': expected a string, got list"),
        (r'{"text": "ab\ud800"}', r"'text': character 2 is the lone surrogate \\ud800"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_json_line_is_named(tmp_path: Path, row: str, message: str, suffix: str) -> None:
    content = '{"text": "good"}\n\n' + row + "\n"
    path = write(tmp_path / f"a.jsonl{suffix}", PACK[suffix](content.encode()))
    documents = read_documents(path)
    assert next(documents).source == f"{path}:1"
    with pytest.raises(ValueError, match=rf"{path}:3: .*{message}"):
        next(documents)


def test_json_lines_policies(tmp_path: Path) -> None:
    good, bad = b'{"text": "good"}\n', b'{"text": "b\xffd"}\n{"text": "\\udc00x"}\n'
    path = write(tmp_path / "a.jsonl", good + bad + good)
    with pytest.raises(ValueError, match=rf"{path}:2: invalid UTF-8 byte 0xff at byte offset 28 "):
        texts(path)
    assert texts(path, errors="replace") == ["good", "b\ufffdd", "\ufffdx", "good"]
    stats = SourceStats()
    assert texts(path, errors="skip", stats=stats) == ["good", "good"]
    assert stats == SourceStats(documents=2, skipped=2, bytes=8)


def test_skip_is_for_unreadable_text_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": null}\n')
    with pytest.raises(ValueError, match="got null"):
        texts(path, errors="skip")


def test_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.jsonl", r'{"text": "\ud83d\ude00"}')) == ["😀"]


def test_long_row_comes_in_pieces(tmp_path: Path) -> None:
    text = "a line of text\n" * 200_000 + "x" * 3_000_000 + "中" * 10
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}))
    (document,) = read_documents(path)
    pieces = list(document.pieces)
    assert "".join(pieces) == text
    assert len(pieces) > 4
    assert max(map(len, pieces)) <= readers_base.PIECE_BYTES
    assert pieces[0].endswith("\n")


def test_line_over_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_llm.data.readers_rows.MAX_LINE_BYTES", 20)
    path = write(tmp_path / "a.jsonl", json_lines([{"text": "a"}, {"text": "b" * 30}]))
    with pytest.raises(ValueError, match=rf"{path}:2: the line is longer than 20 bytes"):
        texts(path)


# --- Parquet ---


def write_parquet(path: Path, column: pa.Array, name: str = "text", **options: object) -> Path:
    table = pa.table({"id": pa.array(range(len(column))), name: column})
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_in_order_across_row_groups(
    tmp_path: Path, kind: pa.DataType, dictionary: bool
) -> None:
    rows = [HARD, "", *(f"row {i} 中" for i in range(2000))]
    column = pa.array(rows, kind)
    if dictionary:
        column = column.dictionary_encode()
    path = write_parquet(tmp_path / "a.parquet", column, row_group_size=700)
    stats = SourceStats()
    found = list(read_documents(path, stats=stats))
    assert ["".join(d.pieces) for d in found] == [row for row in rows if row]
    assert [found[0].source, found[1].source] == [f"{path}:row 0", f"{path}:row 2"]
    assert stats == SourceStats(2001, empty=1, bytes=sum(len(row.encode()) for row in rows))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_parquet(tmp_path: Path, suffix: str) -> None:
    plain = write_parquet(tmp_path / "a.parquet", pa.array(["x", "y"]))
    path = write(tmp_path / f"b.parquet{suffix}", PACK[suffix](plain.read_bytes()))
    assert texts(path) == ["x", "y"]


def test_parquet_column_errors(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["x"]), name="texts")
    with pytest.raises(ValueError, match=rf"{path}: no column 'text'; it has 'id', 'texts'\. Did"):
        texts(path)
    with pytest.raises(ValueError, match=rf"{path}: column 'id': expected strings, got int64"):
        texts(path, text_field="id")


def test_parquet_row_errors(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["x"] * 300 + [None]))
    with pytest.raises(ValueError, match=rf"{path}:row 300: 'text': expected a string, got null"):
        texts(path)
    broken = pa.array([b"x", b"b\xff"]).view(pa.string())
    path = write_parquet(tmp_path / "b.parquet", broken)
    with pytest.raises(ValueError, match=rf"{path}:row 1: 'text': invalid UTF-8 byte 0xff"):
        texts(path)
    assert texts(path, errors="replace") == ["x", "b\ufffd"]
    assert texts(path, errors="skip") == ["x"]


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    rows = ["".join(random.Random(i).choices("abcdef", k=500)) for i in range(500)]
    whole = write_parquet(tmp_path / "a.parquet", pa.array(rows)).read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        path = write(tmp_path / "cut.parquet", whole[:cut])
        with pytest.raises(ValueError, match=rf"{path}: damaged or cut-off Parquet file"):
            texts(path)


# --- compression ---


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_in_several_members(tmp_path: Path, suffix: str) -> None:
    content = random_text(random.Random(3), 50_000).encode()
    cuts = [0, 1, 1, 4000, 4001, len(content)]
    packed = b"".join(PACK[suffix](content[a:b]) for a, b in itertools.pairwise(cuts))
    assert texts(write(tmp_path / f"a.txt{suffix}", packed)) == [content.decode()]
    assert texts(write(tmp_path / f"A.TXT{suffix.upper()}", packed)) == [content.decode()]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    generator = random.Random(7)
    lines = [{"text": "".join(generator.choices("abcdef", k=90))} for _ in range(3000)]
    packed = PACK[suffix](json_lines(lines).encode())
    for damaged in (b"", packed[: len(packed) // 2], packed[:-1], b"not compressed", b"\0" * 64):
        path = write(tmp_path / f"{name}{suffix}", damaged)
        with pytest.raises(ValueError, match=rf"{path}: (damaged or cut-off|not a) {suffix} file"):
            texts(path)


def test_checksum_of_gzip_is_checked(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"some text"))
    packed[-6] ^= 1  # within the CRC
    path = write(tmp_path / "a.txt.gz", bytes(packed))
    with pytest.raises(ValueError, match="damaged"):
        texts(path)


def test_missing_zstandard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = write(tmp_path / "a.txt.zst", zstandard.compress(b"x"))
    with pytest.raises(ValueError, match=r"a\.txt\.zst: .*pip install 'lightning-llm\[zstd\]'"):
        texts(path)
