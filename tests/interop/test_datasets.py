"""Hugging Face datasets as documents: saved to disk, as a local folder, map-style and streaming."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Value, disable_progress_bars

from lightning_llm.data.sources import SourceStats
from lightning_llm.interop.hf.datasets import dataset_fingerprint, open_dataset, read_dataset

ROWS = ["first", "", "中文 😀\r\n\u2028", *(f"row {i}" for i in range(600))]
KEPT = [(i, row) for i, row in enumerate(ROWS) if row]


@pytest.fixture(autouse=True)
def quiet() -> None:
    disable_progress_bars()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows in each of the forms a dataset takes on disk."""
    disable_progress_bars()
    root = tmp_path_factory.mktemp("datasets")
    data = Dataset.from_dict({"id": list(range(len(ROWS))), "text": ROWS})
    data.save_to_disk(root / "single")
    DatasetDict(train=data, valid=data.select(range(3))).save_to_disk(root / "splits")
    (root / "folder").mkdir()
    lines = "".join(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(ROWS))
    (root / "folder" / "train.jsonl").write_text(lines)
    return {path.name: path for path in root.iterdir()}


def texts(*args: object, **options: object) -> list[tuple[str, str]]:
    documents = read_dataset(*args, **options)  # type: ignore[arg-type]
    return [(document.source, "".join(document.pieces)) for document in documents]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["single", "splits", "folder"])
def test_every_row_is_a_document(saved: dict[str, Path], form: str, streaming: bool) -> None:
    stats = SourceStats()
    path = saved[form]
    assert texts(path, streaming=streaming, stats=stats) == [
        (f"{path}[train]:row {i}", row) for i, row in KEPT
    ]
    size = sum(len(row.encode()) for row in ROWS)
    assert stats == SourceStats(documents=len(KEPT), empty=1, bytes=size)


def test_splits_and_slices(saved: dict[str, Path]) -> None:
    assert len(texts(saved["splits"], split="valid")) == 2
    assert len(texts(saved["folder"], split="train[3:10]")) == 7
    assert [row for _, row in texts(str(saved["folder"]), max_documents=2)] == ["first", ROWS[2]]


@pytest.mark.parametrize("streaming", [False, True])
def test_packaged_reader_with_data_files(saved: dict[str, Path], streaming: bool) -> None:
    files = {"train": str(saved["folder"] / "train.jsonl")}
    assert len(texts("json", data_files=files, streaming=streaming)) == len(KEPT)


def test_rows_are_read_as_they_are_asked_for(saved: dict[str, Path]) -> None:
    stats = SourceStats()
    documents = read_dataset(saved["splits"], streaming=True, stats=stats)
    assert len(list(itertools.islice(documents, 5))) == 5
    assert stats.documents == 5


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("splits", {"split": "test"}, r"no split 'test'; it has \['train', 'valid'\]"),
        ("single", {"split": "test"}, r"no split 'test'; it is one split, 'train'"),
        ("folder", {"split": "test"}, r"split='test'\) cannot be loaded: .*\['train'\]"),
        ("splits", {"text_field": "tex"}, r"no column 'tex'; it has 'id', 'text'\. Did you mean"),
        ("folder", {"text_field": "id"}, r"\[train\]:row 0: 'id': expected a string, got int"),
        ("folder", {"max_documents": 0}, r"max_documents=0 must be at least 1"),
    ],
)
def test_errors_name_the_remedy(
    saved: dict[str, Path], form: str, options: dict[str, object], message: str, streaming: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        texts(saved[form], streaming=streaming, **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_null_row_is_named(tmp_path: Path, streaming: bool) -> None:
    rows = ["a"] * 300 + [None]
    Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"data\[train\]:row 300: 'text': expected .*, got null"):
        texts(tmp_path / "data", streaming=streaming)


def test_damaged_file_names_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=rf"dataset '{tmp_path}/data' .* cannot be loaded: .*JSON"):
        texts(tmp_path / "data")
    with pytest.raises(ValueError, match=rf"dataset {tmp_path}/data.*: cannot be read after row 0"):
        texts(tmp_path / "data", streaming=True)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing': no such directory \(working directory"):
        read_dataset(tmp_path / "missing")
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(ValueError, match=r"a\.jsonl' is a file: give files as train_files"):
        read_dataset(tmp_path / "a.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' .* cannot be loaded"):
        read_dataset(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"'no-such/dataset' .* cannot be loaded: .*"):
        read_dataset("no-such/dataset")


def test_formatted_dataset_still_gives_strings(tmp_path: Path) -> None:
    data = Dataset.from_dict({"text": ["a", "b"]}).cast_column("text", Value("large_string"))
    data.set_format("numpy")
    data.save_to_disk(tmp_path / "data")
    assert [row for _, row in texts(tmp_path / "data")] == ["a", "b"]


def test_fingerprint_follows_the_content(saved: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(saved["folder"], copy)
    before = dataset_fingerprint(saved["folder"])
    assert dataset_fingerprint(copy) == before
    assert dataset_fingerprint(copy, split="test") != before
    assert dataset_fingerprint(copy, name="other") != before
    file = copy / "train.jsonl"
    file.write_text(file.read_text().replace("first", "fIrst"))
    assert dataset_fingerprint(copy) != before


def test_fingerprint_of_packaged_reader_and_hub_names(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n')
    one = dataset_fingerprint("json", data_files=str(file))
    file.write_text('{"text": "b"}\n')
    assert dataset_fingerprint("json", data_files=[str(file)]) != one
    assert dataset_fingerprint("some/name") != dataset_fingerprint("some/name", revision="abc")
    loaded = open_dataset(saved["folder"])
    again = open_dataset(saved["folder"])
    assert dataset_fingerprint("some/name", dataset=loaded) != dataset_fingerprint("some/name")
    assert dataset_fingerprint("some/name", dataset=loaded) == dataset_fingerprint(
        "some/name", dataset=again
    )
