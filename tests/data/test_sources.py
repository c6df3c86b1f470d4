"""Plain text in, documents out: content kept to the byte, bad input named to the byte."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from source_files import HARD, PACK, random_text, texts, write

from lightning_llm.data.sources import (
    SourceStats,
    is_plain_text,
    read_documents,
    split_file_range,
)

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


@pytest.mark.parametrize(
    ("encoding", "text", "said"),
    [
        ("gbk", "那年春天他独自回到长安。\n", "may be GB18030 .* convert it, as `iconv"),
        ("big5", "那年春天他獨自回到長安。\n", "Big5"),
        (
            "latin-1",
            "Le café était là, près de l'école.\n",
            "another encoding, convert it to UTF-8",
        ),
        ("utf-8", "那年春天\udcff他独自回到长安。\n", "If the text has another encoding"),
    ],
)
def test_text_of_another_encoding_is_to_be_converted(
    tmp_path: Path, encoding: str, text: str, said: str
) -> None:
    path = write(tmp_path / "a.txt", (text * 20_000).encode(encoding, "surrogateescape"))
    with pytest.raises(ValueError, match=said):
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
