"""Which files paths, globs and folders stand for, and what identifies their content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from source_files import write

from lightning_llm.data.sources import (
    expand_files,
    fingerprint_files,
)


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
