"""Where prepared data is kept, and who may write it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lightning_llm.data.store import TokenStore
from lightning_llm.data.tokenizer import load_tokenizer
from lightning_llm.errors import FileAccessError, InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)
_SETTLED_NS = 2_000_000_000


def cache_root(cache_dir: str | Path | None) -> Path:
    """Return the folder of all prepared data.

    Args:
        cache_dir: Used if given; else ``$XDG_CACHE_HOME/lightning_llm`` or
            ``~/.cache/lightning_llm``.

    Raises:
        PermissionError: The folder belongs to another user.
    """
    if cache_dir is not None:
        root = Path(cache_dir).expanduser().absolute()
    else:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        root = Path(home).expanduser().absolute() / "lightning_llm"
    _check_owner(root)
    return root


def _check_owner(root: Path) -> None:
    """Refuse a folder of another user, who could exchange what is prepared there.

    Root may use anybody's, as in a container whose volume belongs to a user of the host.
    """
    if not hasattr(os, "getuid") or os.getuid() == 0:
        return
    try:
        owner = os.stat(root).st_uid
    except OSError:
        return  # not there yet, or named by what opens it
    if owner not in (os.getuid(), 0):
        raise FileAccessError(
            f"the cache folder {root} belongs to another user (id {owner}), who could change what "
            "is prepared there; give a folder of your own as cache_dir"
        )


def content_hash(content: Any) -> str:
    """Return the SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cache_key(content: dict[str, Any]) -> str:
    """Return the name of the cache entry for plain data that decides its content."""
    return content_hash(content)[:32]


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the lock of a cache entry; a process that is killed gives it up.

    Raises:
        OSError: The cache is not writable.
    """
    try:
        entry.parent.parent.mkdir(parents=True, exist_ok=True)
        entry.parent.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(entry.with_name(f"{entry.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _LOG.info("waiting for another process that prepares %s", entry)
            lock.acquire()
    except OSError as error:
        raise type(error)(
            error.errno,
            f"the cache folder cannot be written ({error.strerror}); give another one as cache_dir",
            str(entry.parent),
        ) from error
    try:
        yield
    finally:
        lock.release()


def make_once(target: Path, make: Callable[[], object], *, entry: Path) -> None:
    """Make a part of a cache entry if it is not there: one process does, the others wait.

    Args:
        target: What ``make`` makes, as its last act.
        make: Called under the lock of the entry, which it must not ask for itself.
        entry: The cache entry.

    Raises:
        OSError: The cache is not writable.
    """
    if target.exists():
        return
    with locked(entry):
        if not target.exists():
            make()


def cached_tokenizer(
    folder: Path, train: Callable[[], PreTrainedTokenizerFast], *, entry: Path
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a cache entry, trained first if it is not there.

    Args:
        folder: Where it is kept.
        train: Called by one process.
        entry: The cache entry, see `make_once`.
    """

    def make() -> None:
        for left in folder.parent.glob(f".{folder.name}.writing*"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed here
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}.writing-"
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        train().save_pretrained(temporary)
        temporary.rename(folder)

    make_once(folder, make, entry=entry)
    return load_tokenizer(folder)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with open(temporary, "x", encoding="utf-8") as stream:  # follows no link
        json.dump(content, stream, indent=1, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def remembered_fingerprint(files: Sequence[Path], root: Path, compute: Callable[[], str]) -> str:
    """Return the fingerprint of files, hashing them only if they may have changed.

    A content hash of a large corpus takes minutes, and every process of a run needs it. So it is
    kept under the files' paths, sizes, inodes and times of last change (of content and of
    metadata, which no program can set back). Files that changed within the last two seconds are
    not remembered: a second change could leave the same times.

    Args:
        files: All files that the fingerprint covers.
        root: The cache.
        compute: Called if it is not known.
    """
    try:
        states = [(str(file.absolute()), os.stat(file)) for file in files]
    except OSError:
        return compute()  # which names the file that is gone
    known = [(path, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for path, s in states]
    memory = root / "fingerprints" / f"{cache_key({'files': known})}.json"
    try:
        return json.loads(memory.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    newest = max((max(s.st_mtime_ns, s.st_ctime_ns) for _, s in states), default=0)
    settled = time.time_ns() - newest > _SETTLED_NS
    fingerprint = compute()
    if settled:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, {"fingerprint": fingerprint})
        except OSError:
            _LOG.debug("fingerprint not kept: %s is not writable", memory)
    return fingerprint


def open_cached(entry: Path, name: str) -> TokenStore:
    """Open a store of a cache entry.

    Raises:
        ValueError: It is damaged; the message says what to delete.
    """
    try:
        return TokenStore(entry / name)
    except (ValueError, FileNotFoundError) as error:
        raise InvalidValueError(
            f"{error} It belongs to a cache: delete the folder {entry}, and the next run makes it "
            "again from the text."
        ) from error
