"""The cache: where it is, who may write, and when a file has to be read again."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from lightning_llm import TextDataModule
from lightning_llm.data import TokenizerSpec, cache


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root(None) == tmp_path / "lightning_llm"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache.cache_root(None) == Path.home() / ".cache" / "lightning_llm"
    assert cache.cache_root("~/here") == Path.home() / "here"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OSError, match=r"cache folder cannot be written .*cache_dir.*file/cache"),
        cache.locked(tmp_path / "file" / "cache" / "entry"),
    ):
        pass


def test_an_error_while_the_lock_is_held_is_passed_on(tmp_path):
    with pytest.raises(OSError, match="something else"), cache.locked(tmp_path / "entry"):
        raise OSError("something else")
    with cache.locked(tmp_path / "entry"):
        pass


def test_json_is_whole_or_not_there(tmp_path, monkeypatch):
    cache.write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def old_file(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("content")
    later = time.time_ns() + 60 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    return path


def test_an_unchanged_file_is_hashed_once(old_file, tmp_path):
    def fingerprint(value: str) -> str:
        return cache.remembered_fingerprint([old_file], tmp_path / "cache", lambda: value)

    assert fingerprint("first") == "first"
    assert fingerprint("not computed") == "first"
    times = os.stat(old_file)
    old_file.write_text("CONTENT")  # as long as before
    os.utime(old_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint("second") == "second"


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("content")
    for value in ("first", "second"):
        assert cache.remembered_fingerprint([path], tmp_path / "c", lambda v=value: v) == value


def test_memory_that_is_damaged_or_not_writable_does_no_harm(old_file, tmp_path):
    assert cache.remembered_fingerprint([old_file], tmp_path / "c", lambda: "a") == "a"
    (memory,) = (tmp_path / "c" / "fingerprints").iterdir()
    memory.write_text("{")
    assert cache.remembered_fingerprint([old_file], tmp_path / "c", lambda: "b") == "b"
    assert cache.remembered_fingerprint([old_file], old_file / "no", lambda: "c") == "c"
    gone = [tmp_path / "gone"]
    assert cache.remembered_fingerprint(gone, tmp_path / "c", lambda: "d") == "d"


def test_a_damaged_cache_says_what_to_delete(tmp_path):
    (tmp_path / "a.txt").write_text("some text to read " * 200)

    def build():
        data = TextDataModule(
            train_files=[str(tmp_path / "a.txt")],
            tokenizer=TokenizerSpec("byte"),
            seq_len=16,
            micro_batch_size=2,
            cache_dir=str(tmp_path / "cache"),
        )
        data.prepare_data()
        data.setup("fit")
        return data.train_store.path

    path = Path(build())
    file = path / "tokens.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"truncated.*delete the folder {path.parent}"):
        build()
    shutil.rmtree(path.parent)
    assert build() == path


def test_a_cache_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(tmp_path, 4321, -1)
    assert cache.cache_root(tmp_path) == tmp_path  # root may use anybody's
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    with pytest.raises(PermissionError, match=r"another user \(id 4321\).*cache_dir"):
        cache.cache_root(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert cache.cache_root(tmp_path) == tmp_path


def test_a_new_cache_is_private(tmp_path: Path) -> None:
    entry = cache.cache_root(tmp_path / "new" / "cache") / "entry"
    with cache.locked(entry):
        assert entry.parent.stat().st_mode & 0o777 == 0o700
