"""Text files in, documents out: content kept to the byte, bad input named to the byte."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lightning_llm.data import readers_base
from lightning_llm.data.sources import (
    SourceStats,
    expand_files,
    fingerprint_files,
    is_plain_text,
    read_documents,
    split_file_range,
)

HARD = "\ufeff first\r\nNUL \0, U+2028 \u2028, NEL \x85, VT \x0b, 中文, 😀, e\u0301\r\rlast \ufeff"


def texts(path: Path, **options: object) -> list[str]:
    return ["".join(document.pieces) for document in read_documents(path, **options)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- plain text ---


def test_text_is_kept_to_the_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x" + HARD)
    assert texts(path) == ["x" + HARD]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + HARD.encode())
    # Only the mark of the file goes; the text here begins with a second one, which is content.
    assert texts(path) == [HARD]


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.md", "noextension", "A.TXT", "b.txt.log"])
def test_other_suffixes_are_plain_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "x\n\ny")
    assert texts(path) == ["x\n\ny"]
    assert is_plain_text(path)


def test_plain_text_is_one_document_with_counts(tmp_path: Path) -> None:
    stats = SourceStats()
    path = write(tmp_path / "a.txt", "中\n\nb")
    (document,) = read_documents(path, stats=stats)
    assert document.source == str(path)
    assert "".join(document.pieces) == "中\n\nb"
    assert stats == SourceStats(documents=1, bytes=6)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_empty_file_is_counted(tmp_path: Path, content: bytes, suffix: str) -> None:
    stats = SourceStats()
    assert texts(write(tmp_path / f"a.txt{suffix}", PACK[suffix](content)), stats=stats) == []
    assert stats == SourceStats(empty=1)


def random_text(generator: random.Random, size: int) -> str:
    """Text whose line ends, spaces and wide characters come in stretches of any length."""
    parts = []
    while size > 0:
        count = generator.choice([1, 3, 50, 700])
        parts.append(
            generator.choice(["\n", " ", "a", "\r\n", "中", "😀", "\0", "word ", "é"]) * count
        )
        size -= count
    return "".join(parts)


@pytest.mark.parametrize("seed", range(8))
def test_pieces_join_to_the_text_whatever_the_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    generator = random.Random(seed)
    monkeypatch.setattr("lightning_llm.data.readers_text.PIECE_BYTES", block := 997 + seed)
    text = random_text(generator, 20_000)
    path = write(tmp_path / "a.txt", text)
    (document,) = read_documents(path)
    pieces = list(document.pieces)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 4 * block for piece in pieces)


def test_pieces_are_cut_where_lines_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_llm.data.readers_text.PIECE_BYTES", 500)
    path = write(tmp_path / "a.py", "def f():\n    return 1\n\n\n" * 200)
    (document,) = read_documents(path)
    pieces = list(document.pieces)
    assert len(pieces) > 5
    assert all(piece.startswith("def") for piece in pieces)


@pytest.mark.parametrize(
    ("content", "line", "offset"),
    [
        (b"\xff", 1, 0),
        (b"one\ntwo\nth\xffree\n", 3, 10),
        (b"one\r\ntwo\xc3", 2, 8),  # the file ends within a character
        (b"\xef\xbb\xbfa\n\x80", 2, 5),  # the mark counts as bytes of the file
        (b"a\n" * 600_000 + b"\xed\xa0\x80", 600_001, 1_200_000),  # a surrogate; second block
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_invalid_utf8_is_named_to_the_byte(
    tmp_path: Path, content: bytes, line: int, offset: int, suffix: str
) -> None:
    path = write(tmp_path / f"a.txt{suffix}", PACK[suffix](content))
    with pytest.raises(
        ValueError, match=rf"{path}:{line}: .*0x.. at byte offset {offset} .*errors="
    ):
        texts(path)


def test_invalid_utf8_replaced_or_skipped(tmp_path: Path) -> None:
    content = b"good\n" * 300_000 + b"b\xffd\nend"
    path = write(tmp_path / "a.txt", content)
    assert texts(path, errors="replace") == [content.decode(errors="replace")]
    stats = SourceStats()
    assert texts(path, errors="skip", stats=stats) == []
    assert stats == SourceStats(skipped=1)


def test_utf16_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "hello".encode("utf-16"))
    with pytest.raises(ValueError, match="looks like UTF-16"):
        texts(path)


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="errors='ignore' must be 'strict', 'replace' or 'skip'"):
        read_documents("a.txt", errors="ignore")  # type: ignore[arg-type]


def test_json_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "{}")
    with pytest.raises(ValueError, match=r"a\.json: .*Rename it to \.jsonl"):
        read_documents(path)


# --- byte ranges ---


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 0.5, 0.9, 0.999, 1.0])
def test_split_of_ascii_is_the_split_by_characters(tmp_path: Path, fraction: float) -> None:
    text = "".join(random.Random(0).choices("ab \n", k=1003))
    path = write(tmp_path / "a.txt", text)
    first, second = split_file_range(path, fraction)
    cut = int(fraction * len(text))
    parts = ["".join(texts(path, start=a, stop=b)) for a, b in (first, second)]
    assert parts == [text[:cut], text[cut:]]


@pytest.mark.parametrize("text", ["é" * 5, "中文字" * 3, "a😀b😀😀c"])
def test_split_never_cuts_a_character(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.txt", text)
    size = len(text.encode())
    for wanted in range(size):
        (start, cut), (again, stop) = split_file_range(path, (wanted + 0.5) / size)
        assert (start, again, stop) == (0, cut, size)
        assert wanted - 3 <= cut <= wanted
        assert "".join(texts(path, stop=cut) + texts(path, start=cut)) == text


def test_range_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a\nb\nc\xff")
    with pytest.raises(ValueError, match=rf"{path}:3: .* byte offset 5 "):
        texts(path, start=2)
    with pytest.raises(ValueError, match=r"fraction=1\.5 must be between 0 and 1"):
        split_file_range(path, 1.5)
    for name in ("a.txt.gz", "a.jsonl", "a.parquet"):
        with pytest.raises(ValueError, match=f"{name}: start and stop need an uncompressed"):
            read_documents(name, stop=3)


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


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


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


# --- memory ---


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl"])
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    """A single line of 100 MB: plain text never holds it, a JSON row about four times."""
    path = tmp_path / name
    line, count = b"x" * (1 << 20), 100
    if name.endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=1) as stream:
            for _ in range(count):
                stream.write(line)
    elif name.endswith(".zst"):
        with zstandard.open(path, "wb") as stream:
            for _ in range(count):
                stream.write(line)
    else:
        wrap = (b'{"text": "', b'"}') if name.endswith(".jsonl") else (b"", b"")
        path.write_bytes(wrap[0] + line * count + wrap[1])
    script = (
        "import resource, sys; from lightning_llm.data.sources import read_documents\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "print(sum(len(p) for d in read_documents(sys.argv[1]) for p in d.pieces))\n"
        "print(peak() - before)"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True
    ).stdout.split()
    assert int(output[0]) == count << 20
    bound_mb = 600 if name.endswith(".jsonl") else 40
    kib = 1 if sys.platform != "darwin" else 1024
    assert int(output[1]) < (bound_mb << 10) * kib


# --- files ---


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.txt",
        "a.txt",
        "sub/c.jsonl",
        "sub/deep/d.txt.gz",
        "sub/e.py",
        "sub/.hidden/f.txt",
        ".g.txt",
        "odd[1].txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_globs_and_directories(tree: Path) -> None:
    def names(*patterns: str | Path) -> list[str]:
        return [os.path.relpath(file, tree) for file in expand_files(list(patterns))]

    assert expand_files("b.txt") == [Path("b.txt")]
    assert expand_files(tree / "b.txt") == [tree / "b.txt"]
    assert names("*.txt") == ["a.txt", "b.txt", "odd[1].txt"]
    assert names("odd[1].txt") == ["odd[1].txt"]
    assert names("**/*.py") == ["sub/e.py"]
    assert names(tree / "**" / "[cd].*") == ["sub/c.jsonl", "sub/deep/d.txt.gz"]
    assert names(".") == ["a.txt", "b.txt", "odd[1].txt", "sub/c.jsonl", "sub/deep/d.txt.gz"]
    assert names("b.txt", "sub/*.py", "a.txt") == ["a.txt", "b.txt", "sub/e.py"]


def test_each_file_once(tree: Path) -> None:
    (tree / "link.txt").symlink_to(tree / "b.txt")
    (tree / "again").symlink_to(tree / "sub")
    files = expand_files(["b.txt", tree / "b.txt", "./*.txt", "**/*.txt", "link.txt", "**/*.py"])
    assert [file.resolve() for file in files] == [
        (tree / name).resolve() for name in ("a.txt", "sub/e.py", "b.txt", "odd[1].txt")
    ]


def test_home_is_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert expand_files("~/a.txt") == [tree / "a.txt"]


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("missing.txt", FileNotFoundError, r"no file 'missing\.txt' \(working directory: {cwd}\)"),
        ("*.md", FileNotFoundError, r"no file matches '\*\.md': .*\(working directory: {cwd}\)"),
        ("s*", FileNotFoundError, r"no file matches 's\*': nothing found but directories"),
        ("sub/.hidden/..", None, ""),
        ("", FileNotFoundError, r"no file ''"),
        ([], ValueError, r"no files given"),
        ([3], TypeError, r"expected a path or glob, got int"),
        (
            "empty",
            FileNotFoundError,
            r"below the directory 'empty' .*there: \['\.csv'\]",
        ),
        ("pipe", ValueError, r"pipe: not a regular file"),
    ],
)
def test_bad_patterns(tree: Path, pattern: object, error: type | None, message: str) -> None:
    (tree / "empty").mkdir()
    (tree / "empty" / "x.csv").touch()
    os.mkfifo(tree / "pipe")
    if error is None:
        assert expand_files(pattern)  # type: ignore[arg-type]
        return
    with pytest.raises(error, match=message.replace("{cwd}", str(tree))):
        expand_files(pattern)  # type: ignore[arg-type]


def test_unreadable_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: "b.txt" not in str(path))
    with pytest.raises(PermissionError, match=r"b\.txt: no permission to read it"):
        expand_files("*.txt")


def test_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    a, b = write(tmp_path / "x/a.txt", "one"), write(tmp_path / "x/b.txt", "two")
    before = fingerprint_files([a, b])
    assert before == fingerprint_files([str(a), str(b)])
    moved = [write(tmp_path / "y/a.txt", "one"), write(tmp_path / "y/b.txt", "two")]
    assert fingerprint_files(moved) == before
    assert fingerprint_files([b, a]) != before
    assert fingerprint_files([a, write(tmp_path / "x/c.txt", "two")]) != before
    assert fingerprint_files([a]) != before
    times = os.stat(b)
    write(b, "twO")  # same size, same time
    os.utime(b, (times.st_atime, times.st_mtime))
    assert fingerprint_files([a, b]) != before
    write(a, "onet")
    write(b, "wo")  # the same bytes, cut elsewhere
    assert fingerprint_files([a, b]) != before


def test_excluded_folders_are_left_out_below_the_fixed_part_of_a_glob(tmp_path: Path) -> None:
    root = tmp_path / "test"
    for name in ("a.py", "test/b.py", "lib/site-packages/deep/c.py", "lib/d.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    found = expand_files(f"{root}/**/*.py", exclude_folders=["test", "site-packages"])
    assert [file.relative_to(root).as_posix() for file in found] == ["a.py", "lib/d.py"]
    with pytest.raises(FileNotFoundError, match="every one of the 1 files"):
        expand_files(f"{root}/**/b.py", exclude_folders=["test"])
    with pytest.raises(TypeError, match="exclude_folders"):
        expand_files(f"{root}/**/*.py", exclude_folders="test")
