"""What is read by field, what is text, and what is refused by its name or its content."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import json_lines, texts, write

from lightning_llm import TextDataModule
from lightning_llm.data import (
    ChatDataModule,
    QADataModule,
    TokenizerSpec,
    TranslationDataModule,
)
from lightning_llm.data.rows import FileRows
from lightning_llm.data.sources import SourceStats, read_documents

TEXTS = [
    "Hello, world.",
    'She said "hi";\r\nand, on the next line,\tthis.',
    "Ünïcode 中文",
    "x" * 200_000,  # over the limit of the csv module
]


def table(rows: list[list[object]], **options: object) -> str:
    """Return rows as the standard library writes them."""
    stream = io.StringIO()
    csv.writer(stream, **options).writerows(rows)  # type: ignore[arg-type]
    return stream.getvalue()


ROWS: list[list[object]] = [["id", "text"], *([i, text] for i, text in enumerate(TEXTS))]


# --- tables ---


@pytest.mark.parametrize(
    ("name", "delimiter", "pack"),
    [
        ("a.csv", ",", bytes),
        ("a.tsv", "\t", bytes),
        ("a.csv", ";", bytes),
        ("a.csv", "|", bytes),
        ("A.CSV.GZ", ",", gzip.compress),
        ("a.tsv.xz", "\t", lzma.compress),
        ("a.csv.bz2", ",", bz2.compress),
    ],
)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tables_are_read_by_field(
    tmp_path: Path, name: str, delimiter: str, pack: Callable[[bytes], bytes], quoting: int
) -> None:
    content = "\ufeff" + table(ROWS, delimiter=delimiter, quoting=quoting)
    path = write(tmp_path / name, pack(content.encode()))
    assert texts(path) == TEXTS
    assert texts(path, text_field="id") == ["0", "1", "2", "3"]


def test_places_in_tables_are_lines_of_the_file(tmp_path: Path) -> None:
    stats = SourceStats()
    path = write(tmp_path / "a.csv", 'text\n"a\nb"\n\nc\n""\n')
    documents = list(read_documents(path, stats=stats))
    assert [d.source for d in documents] == [f"{path}:2", f"{path}:5"]
    assert stats == SourceStats(documents=2, empty=1, bytes=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Text,id\na,1\n", r":1: no column 'text'; it has 'Text', 'id'\. Did you mean 'Text'\?"),
        ("A first line of prose\n", r":1: no column 'text'.* first line must name the columns"),
        ("id,text\n1,a\n2\n", r":3: 1 cells; the header names 2 columns, separated by commas"),
        ("id,text\n1,a,b\n", r":2: 3 cells; the header names 2"),
        ('id,text\n1,"a"b\n', r":2: malformed row"),
        ('id,text\n1,a\n2,"b\n3,c\n', r":3: malformed row.* runs to line 4.*never closed"),
        ("id,text\r1,a\r", r":1: malformed row: a carriage return alone"),
        ("text,text\na,b\n", r":1: the column 'text' is in the header more than once"),
        (b"id,text\n1,a\n2,caf\xe9\n", r":3: 'text': invalid UTF-8 byte 0xe9"),
    ],
)
def test_bad_table_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(ValueError, match=rf"a\.csv{message}"):
        texts(path)


def test_invalid_cells_follow_the_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,other\nb\xffd,1\ngood,\xff\n")
    assert texts(path, errors="replace") == ["b\ufffdd", "good"]
    stats = SourceStats()
    assert texts(path, errors="skip", stats=stats) == ["good"]
    assert (stats.skipped, stats.first_skipped) == (1, f"{path}:2")


# --- JSON and nested fields ---


def test_json_that_holds_lines(tmp_path: Path) -> None:
    content = json_lines([{"text": "a"}, {"text": "b"}]).encode()
    assert texts(write(tmp_path / "c4.json.gz", gzip.compress(content))) == ["a", "b"]
    assert texts(write(tmp_path / "a.json", content)) == ["a", "b"]
    for other in ('[{"text": "a"}]', '{\n "text": "a"\n}', ""):
        with pytest.raises(ValueError, match=r"b\.json: its first line is no whole JSON object"):
            texts(write(tmp_path / "b.json", other))


def test_nested_fields_of_json(tmp_path: Path) -> None:
    rows: list[object] = [{"meta": {"text": "in", "x": {"y": "deep"}}, "a.b": "literal", "a": {}}]
    path = write(tmp_path / "a.jsonl", json_lines(rows))
    assert texts(path, text_field="meta.text") == ["in"]
    assert texts(path, text_field="meta.x.y") == ["deep"]
    assert texts(path, text_field="a.b") == ["literal"]
    with pytest.raises(ValueError, match=r":1: within 'meta': no key 'txt'.*mean 'text'"):
        texts(path, text_field="meta.txt")
    with pytest.raises(ValueError, match=r":1: 'meta\.text\.z': 'meta\.text' holds no fields"):
        texts(path, text_field="meta.text.z")
    with pytest.raises(ValueError, match=r":1: no key 'no\.text'; it has 'meta', 'a\.b', 'a'"):
        texts(path, text_field="no.text")


def test_nested_fields_of_parquet(tmp_path: Path) -> None:
    meta = pa.array([{"text": "in", "n": 1}, {"text": "too", "n": 2}])
    columns = {"meta": meta, "meta.text": pa.array(["x", "y"])}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"meta": meta}), path)
    assert texts(path, text_field="meta.text") == ["in", "too"]
    with pytest.raises(ValueError, match=r"within 'meta': no field 'txt'; it has 'text', 'n'"):
        texts(path, text_field="meta.txt")
    with pytest.raises(ValueError, match=r"'meta\.n\.x': 'meta\.n' holds no fields.* got int64"):
        texts(path, text_field="meta.n.x")
    pq.write_table(pa.table(columns), path)
    assert texts(path, text_field="meta.text") == ["x", "y"]
    pq.write_table(pa.table({"meta": pa.array([{"text": "in"}, None])}), path)
    with pytest.raises(ValueError, match=r":row 1: 'meta\.text': expected a string, got null"):
        texts(path, text_field="meta.text")


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()], ids=str
)
def test_every_string_of_arrow(tmp_path: Path, kind: pa.DataType) -> None:
    words = ["short", "中文 and a long one, over twelve bytes"]
    column = pa.array([word.encode() for word in words]).cast(pa.string()).cast(kind)
    pq.write_table(pa.table({"text": column}), path := tmp_path / "a.parquet")
    assert texts(path) == words
    assert [row for row, _ in FileRows((path,)).rows()] == [{"text": word} for word in words]


# --- what is refused ---


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("one.txt")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("one.txt", "hello")
    return stream.getvalue()


def _database(folder: Path) -> bytes:
    connection = sqlite3.connect(folder / "made")
    connection.execute("create table texts (text)")
    connection.commit()
    connection.close()
    return (folder / "made").read_bytes()


def _array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(50))
    return stream.getvalue()


@pytest.mark.parametrize(
    "name",
    "a.tar.gz a.tgz a.zip a.7z a.csv.zip a.pdf a.docx a.xlsx a.epub a.sqlite a.db a.png a.JPG a.pkl"
    " a.npy a.bin a.pt a.safetensors a.arrow a.h5 a.mp3 a.mp4 a.pyc a.so a.jsonl.lz4".split(),
)
def test_binary_kinds_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"anything")
    with pytest.raises(ValueError, match=rf"{name}: an? .* \(\.\w+\), which is not read\. \w+"):
        read_documents(path)
    stats = SourceStats()
    assert texts(path, errors="skip", stats=stats) == []
    assert stats == SourceStats(skipped=1)


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_tar(), "tar archive"),
        (_zip(), "zip archive"),
        (_array(), "NumPy array"),
        (pickle.dumps({"a": 1}), "pickled objects"),
        (pickle.dumps({"a": 1}, 2), "pickled objects"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        (gzip.compress(b"hello"), r"gzip-compressed data.* ends in \.gz"),
        (lzma.compress(b"hello"), r"xz-compressed data.* ends in \.xz"),
        (bz2.compress(b"hello"), r"bzip2-compressed data.* ends in \.bz2"),
        (np.arange(100, dtype="<u2").tobytes(), "binary data.*TokenDataModule"),
        (np.arange(100, dtype="<i4").tobytes(), "binary data"),
        (np.random.default_rng(0).normal(size=500).tobytes(), "binary data"),
        ("A text in ASCII.\n".encode("utf-16"), "looks like UTF-16.*iconv -f UTF-16 "),
        ("A text in ASCII.\n".encode("utf-16-le"), "looks like UTF-16LE"),
        ("A text in ASCII.\n".encode("utf-16-be"), "looks like UTF-16BE"),
        ("A text in ASCII.\n".encode("utf-32"), "looks like UTF-32"),
    ],
)
def test_binary_content_is_refused(tmp_path: Path, content: bytes, said: str, errors: str) -> None:
    for name in ("a.txt", "a.jsonl", "noext", "a.txt.gz"):
        packed = gzip.compress(content) if name.endswith(".gz") else content
        with pytest.raises(ValueError, match=rf"{name}: the content is .*{said}"):
            texts(write(tmp_path / name, packed), errors=errors)


def test_database_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", _database(tmp_path))
    with pytest.raises(ValueError, match=r"a\.txt: the content is an SQLite database"):
        texts(path)


@pytest.mark.parametrize(
    "name", "a.md a.py a.rst a.html a.c a.ts a.log a.dat a.tex a.xml.bz2 a.svg Makefile".split()
)
def test_any_other_name_is_text(tmp_path: Path, name: str) -> None:
    content = "\x1b[1mbold\x1b[0m MZ BM GIF PK II*, é\f\0"
    data = content.encode()
    assert texts(write(tmp_path / name, bz2.compress(data) if "bz2" in name else data)) == [content]


# --- compression of the standard library ---


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".bz2", bz2.compress)])
def test_members_and_damage(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    words = " ".join(map(str, range(300_000))).encode()
    whole = pack(words[:7]) + pack(b"") + pack(words[7:])
    assert texts(write(tmp_path / f"a.txt{suffix}", whole)) == [words.decode()]
    padded = whole + b"\0" * 8 if suffix == ".xz" else whole
    assert texts(write(tmp_path / f"a.txt{suffix}", padded)) == [words.decode()]
    for damaged in (b"", b"\0" * 64, whole[:-1], whole[: len(whole) // 2], whole + b"garbage"):
        path = write(tmp_path / f"b.txt{suffix}", damaged)
        with pytest.raises(
            ValueError, match=rf"b\.txt{suffix}: (damaged or cut-off|not a) {suffix}"
        ):
            texts(path)


# --- encodings ---


@pytest.mark.parametrize(
    ("encoding", "text", "said"),
    [
        ("cp932", "吾輩は猫である。名前はまだ無い。\n", "may be Shift_JIS.*iconv -f CP932 "),
        ("euc_jp", "吾輩は猫である。名前はまだ無い。\n", "may be EUC-JP"),
        ("euc_kr", "나는 학교에 갑니다. 오늘 날씨가 좋습니다.\n", "may be EUC-KR"),
        ("gbk", "那年春天他独自回到长安。\n", r"may be GB18030 \(GBK\):"),
        ("big5", "那年春天他獨自回到長安。\n", "may be Big5:.*iconv -f BIG5 "),
        ("cp1251", "Вчера мы ходили в театр.\n", "If the text has another encoding"),
        ("cp1252", "Le café était là.\n", "If the text has another encoding"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_encoding_is_guessed_from_the_script(
    tmp_path: Path, encoding: str, text: str, said: str, name: str
) -> None:
    head = {"a.txt": "", "a.jsonl": '{"text": "', "a.csv": "text\n"}[name]
    path = write(tmp_path / name, (head + text * 3).encode(encoding))
    with pytest.raises(ValueError, match=rf"{name}:.*invalid UTF-8.*{said}"):
        texts(path)


# --- the datamodules ---


def test_datamodule_refuses_before_it_reads(tmp_path: Path) -> None:
    files = [write(tmp_path / name, b"x") for name in ("a.txt", "b.zip", "c.pdf")]
    with pytest.raises(ValueError, match=r"train_files: .*b\.zip: an archive .*So are 1 more"):
        TextDataModule(train_files=files, tokenizer=TokenizerSpec("byte"), seq_len=8)


def test_rows_of_tables(tmp_path: Path) -> None:
    """Translation, questions and conversations read the same kinds of files."""
    pairs = [["target", "n", "source"], ['"b", she said', 1, "a\nb"]]
    want = {"target": '"b", she said', "n": "1", "source": "a\nb"}
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";")):
        path = write(tmp_path / name, table(pairs, delimiter=delimiter))
        columns = ("source", "target")
        rows = [row for row, _ in FileRows((path,), columns, needed=columns).rows()]
        assert rows == [want]
    swapped = write(tmp_path / "c.tsv", "target\tsource\nb\ta\n")  # a header in another order
    rows = FileRows((swapped,), ("source", "target"), needed=("source", "target")).rows()
    assert [row for row, _ in rows] == [{"target": "b", "source": "a"}]
    lines = json_lines([{"source": "a", "target": "b"}]).encode()
    packed = write(tmp_path / "a.json.xz", lzma.compress(lines))
    assert next(FileRows((packed,)).rows())[0] == {"source": "a", "target": "b"}


@pytest.mark.parametrize("module", [TranslationDataModule, QADataModule, ChatDataModule])
def test_rows_of_other_kinds_are_refused(tmp_path: Path, module: type) -> None:
    for name, content in (("a.zip", _zip()), ("a.jsonl", _zip()), ("a.md", b"text")):
        path = write(tmp_path / name, content)
        data = module(
            train_files=path, tokenizer=TokenizerSpec("byte"), seq_len=8, cache_dir=tmp_path / "c"
        )
        with pytest.raises(ValueError, match=rf"{name}: (.*which is not read|rows are read from)"):
            data.prepare_data()


def test_aligned_files_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([{"source": "a"}]))
    with pytest.raises(ValueError, match=r"a\.jsonl: aligned files hold one text a line"):
        TranslationDataModule(train_source=path, train_target=path, seq_len=8)


def test_nested_and_binary_columns_of_datasets(tmp_path: Path) -> None:
    import datasets

    from lightning_llm.interop.hf.datasets import read_dataset

    rows = {"meta": [{"text": "one"}, {"text": "two"}], "raw": [b"a", b"b"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "d"))

    def read(field: str) -> list[str]:
        return ["".join(d.pieces) for d in read_dataset(tmp_path / "d", text_field=field)]

    assert (read("meta.text"), read("raw")) == (["one", "two"], ["a", "b"])
    with pytest.raises(ValueError, match=r"row 0: within 'meta': no key 'body'; it has 'text'"):
        read("meta.body")
