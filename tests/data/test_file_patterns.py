"""Links, brackets, odd names, repetitions and wrong types in what names the files."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from source_files import write

from lightning_llm import TextDataModule
from lightning_llm.data import (
    ChatDataModule,
    QADataModule,
    TokenDataModule,
    TokenizerSpec,
    TokenStoreWriter,
    TranslationDataModule,
)
from lightning_llm.data.sources import expand_files, fingerprint_files, read_documents
from lightning_llm.data.stored_tokens import expand_stores


def names(root: Path, *patterns: str | Path, **options: Any) -> list[str]:
    return [os.path.relpath(file, root) for file in expand_files(list(patterns), **options)]


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


# --- links ---


@pytest.mark.parametrize("target", ["gone/part.txt", "part.txt"])  # the latter leads to itself
def test_link_that_leads_nowhere_is_an_error(tmp_path: Path, target: str) -> None:
    put(tmp_path / "a.txt")
    link = tmp_path / "part.txt"
    link.symlink_to(target)
    for pattern in (tmp_path, link, tmp_path / "*.txt", tmp_path / "**" / "*", tmp_path / "p*"):
        with pytest.raises(
            FileNotFoundError, match=r"part\.txt: a link to '.*' that leads nowhere"
        ):
            expand_files(pattern)
    assert names(tmp_path, tmp_path / "a*") == ["a.txt"]


def test_link_of_a_dataset_that_leads_nowhere(tmp_path: Path) -> None:
    from lightning_llm.interop.hf.datasets import open_dataset

    put(tmp_path / "d" / "a.jsonl", '{"text": "a"}\n')
    (tmp_path / "d" / "b.jsonl").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl: a link to 'gone' that leads nowhere"):
        open_dataset(tmp_path / "d")


def test_folder_behind_a_broken_link_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a.txt")
    (tmp_path / "shards").symlink_to("/mount/that/is/away")
    (tmp_path / "note.md").symlink_to("gone.md")  # no folder, by its name, and nobody asked for it
    for pattern in (tmp_path, tmp_path / "**" / "*.txt", f"{tmp_path}/*/*.txt"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            try:
                assert names(tmp_path, pattern) == ["a.txt"]
            except FileNotFoundError:  # the last pattern finds nothing at all
                assert str(pattern).endswith("*/*.txt")
                continue
        (message,) = caplog.messages
        assert "shards: links that lead nowhere; if they stand for folders" in message


def test_circles_of_links_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two links to a parent, and twelve folders that all link to each other."""
    put(tmp_path / "part" / "a.txt")
    for link in ("latest", "current"):
        (tmp_path / "part" / link).symlink_to("..")
    folders = [tmp_path / "store" / str(i) for i in range(12)]
    for number, folder in enumerate(folders):
        put(folder / f"{number}.txt")
        for other in folders:
            if other != folder:
                (folder / f"to{other.name}").symlink_to(other)
    with caplog.at_level(logging.WARNING):
        below = expand_files(tmp_path)
        by_glob = expand_files(f"{tmp_path}/**/*.txt")
    assert below == by_glob
    assert len(below) == 13
    assert len({file.resolve() for file in below}) == 13
    assert any("links to folders that are read already" in text for text in caplog.messages)


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "deep" / "a.txt")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path, tmp_path / "corpus") == ["corpus/link/deep/a.txt"]
    assert names(tmp_path, f"{tmp_path}/corpus/**/deep/*.txt") == ["corpus/link/deep/a.txt"]
    assert names(tmp_path, f"{tmp_path}/corpus/*/**") == ["corpus/link/deep/a.txt"]


def test_shared_files_are_known_through_links(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a.txt", "words " * 20)
    (tmp_path / "b.txt").symlink_to("a.txt")
    TextDataModule(train_files=tmp_path / "a.txt", val_files=tmp_path / "b.txt", seq_len=8)
    assert any("train and are the val part too" in text for text in caplog.messages)


# --- permissions ---


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in: tests may run as root, whom nothing is denied."""
    put(tmp_path / "a.txt")
    put(tmp_path / "secret" / "b.txt")
    scan: Callable[..., Any] = os.scandir

    def deny(folder: Any = ".") -> Any:
        if str(folder).endswith("secret"):
            raise PermissionError(errno.EACCES, "denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", deny)
    for pattern in (tmp_path, f"{tmp_path}/**/*.txt", f"{tmp_path}/*/*.txt"):
        with pytest.raises(PermissionError, match="secret: no permission to list this folder"):
            expand_files(pattern)
    assert names(tmp_path, tmp_path, exclude_folders=["secret"]) == ["a.txt"]


# --- brackets ---


def test_brackets_of_a_path_that_is_there(tmp_path: Path) -> None:
    for name in ("data[1]/a.txt", "data1/b.txt", "data[1]/sub[x]/c.txt", "q?/d.txt"):
        put(tmp_path / name)
    assert names(tmp_path, f"{tmp_path}/data[1]/*.txt") == ["data[1]/a.txt"]
    assert names(tmp_path, f"{tmp_path}/data[1]/sub[x]/*") == ["data[1]/sub[x]/c.txt"]
    assert names(tmp_path, f"{tmp_path}/**/sub[x]/*.txt") == ["data[1]/sub[x]/c.txt"]
    assert names(tmp_path, f"{tmp_path}/data[[]1]/*.txt") == ["data[1]/a.txt"]
    assert names(tmp_path, f"{tmp_path}/data[12]/*.txt") == ["data1/b.txt"]
    assert names(tmp_path, f"{tmp_path}/q?/*.txt") == ["q?/d.txt"]
    with pytest.raises(FileNotFoundError, match=r"write '\[\[\]' for a bracket itself"):
        expand_files(f"{tmp_path}/none[1]/*.txt")


# --- odd names ---


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        put(tmp_path / name, "Some text.\n" * 20)
    except (OSError, UnicodeError):
        pytest.skip("this file system has names of Unicode alone")
    (path,) = expand_files(tmp_path)
    (document,) = read_documents(path)
    assert document.source.endswith(r"caf\xe9.txt")
    assert len(fingerprint_files([path])) == 64
    data = TextDataModule(
        train_files=tmp_path,
        val_fraction=0.2,
        tokenizer=TokenizerSpec("byte"),
        seq_len=8,
        cache_dir=tmp_path / "cache",
    )
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_store) == 1
    named = TextDataModule(train_files=[path], tokenizer=TokenizerSpec("byte"), seq_len=8)
    assert named.hparams["train_files"][0].endswith(r"caf\xe9.txt")  # which loggers can write
    write(path, b"\xff")
    with pytest.raises(ValueError, match=r"caf\\xe9\.txt:1: invalid UTF-8") as error:
        list(read_documents(path))
    str(error.value).encode()
    with pytest.raises(FileNotFoundError, match=r"no file .*n\\\\xe9") as error:
        expand_files(os.fsdecode(b"n\xe9"))
    str(error.value).encode()


# --- repetitions ---


@pytest.mark.parametrize(
    "patterns",
    [["a.txt", "a.txt"], ["a.txt", "./a.txt"], ["a.txt", "*.txt"], ["*.txt", "l*"], ["*"]],
)
def test_repeated_files_count_once_and_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patterns: list[str],
) -> None:
    put(tmp_path / "a.txt")
    (tmp_path / "link").symlink_to("a.txt")
    monkeypatch.chdir(tmp_path)
    assert len(expand_files(patterns, argument="train_files")) == 1
    (message,) = caplog.messages
    assert message.startswith("train_files: ")
    assert "a.txt" in message
    assert message.endswith("each is read once")


def test_aligned_files_may_repeat(tmp_path: Path) -> None:
    source, targets = put(tmp_path / "a.en", "a\n"), [put(tmp_path / f"{i}.de") for i in "12"]
    data = TranslationDataModule(train_source=[source] * 2, train_target=targets, seq_len=8)
    assert data is not None
    with pytest.raises(TypeError, match="train_source: a set has no order"):
        TranslationDataModule(train_source={source}, train_target=targets, seq_len=8)  # type: ignore


def test_other_suffixes_of_a_folder_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.txt", "b.pdf", "c.csv", "d.csv", "e.txt.xz"):
        put(tmp_path / name)
    assert names(tmp_path, tmp_path) == ["a.txt", "e.txt.xz"]
    (message,) = caplog.messages
    assert "left out: 2 .csv, 1 .pdf. Name them by a glob" in message


# --- wrong types ---

MODULES: dict[str, tuple[type, dict[str, Any]]] = {
    "text": (TextDataModule, {}),
    "chat": (ChatDataModule, {}),
    "qa": (QADataModule, {}),
    "translation": (TranslationDataModule, {}),
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"a": "x.txt", "b": ["y.txt"]},
            r"a mapping with the keys \['a', 'b'\]. .*'x.txt', 'y.txt'",
        ),
        ([["a.txt"], ["b.txt"]], r"got list \['a\.txt'\].* one flat list"),
        (["a.txt", None], r"got NoneType None"),
        (3, r"=3: expected a path or glob"),
        (b"a.txt", r"expected a path or glob"),
    ],
)
@pytest.mark.parametrize("argument", ["train_files", "val_files", "test_files"])
@pytest.mark.parametrize("module", MODULES)
def test_wrong_types_of_files(
    tmp_path: Path, given: Any, message: str, argument: str, module: str
) -> None:
    kind, options = MODULES[module]
    files = {"train_files": put(tmp_path / "a.jsonl", "{}"), argument: given}
    with pytest.raises(TypeError, match=rf"{argument}.*{message}"):
        kind(**files, **options, seq_len=8)


def test_mapping_of_parts_names_the_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="have arguments of their own: val_"):
        TextDataModule(train_files={"train": "a.txt", "val": "b.txt"}, seq_len=8)  # type: ignore


# --- stores ---


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    for name in ("shards[1]/a", "shards[1]/b", "shards1/c"):
        with TokenStoreWriter(tmp_path / name, vocab_size=8) as writer:
            writer.add([1, 2, 3])
    return tmp_path


def test_stores_by_pattern(stores: Path, caplog: pytest.LogCaptureFixture) -> None:
    def found(*given: str | Path) -> list[str]:
        return [os.path.relpath(path, stores) for path in expand_stores(list(given), "train_store")]

    assert found(f"{stores}/shards[1]/*") == ["shards[1]/a", "shards[1]/b"]
    assert not caplog.messages
    assert found(stores / "shards1/c", stores / "shards1/c") == ["shards1/c"]
    (message,) = caplog.messages
    assert message.startswith("train_store: ")
    assert message.endswith("each is read once")
    (stores / "shards1/gone.bin").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"gone\.bin: a link .* leads nowhere"):
        found(f"{stores}/shards1/*.bin")
    with pytest.raises(TypeError, match=r"train_store: expected a path.* got a mapping"):
        TokenDataModule(train_store={"a": "b"}, vocab_size=8)  # type: ignore
