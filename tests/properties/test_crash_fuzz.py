"""A fault at every call into the file system in turn: what was acknowledged is there afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lightning_llm.data import TokenStore, TokenStoreWriter
from lightning_llm.plugins import AtomicCheckpointIO
from lightning_llm.plugins.io import DamagedCheckpointError, verify_checkpoint
from lightning_llm.plugins.io.sealed_file import SealingWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

CALLS = ("open", "fsync", "replace", "rename", "mkdir", "close")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EPERM)


@contextmanager
def fault_at(number: int, strike: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``strike`` in place of the call with that number; yields a list with the count."""
    count = [0]
    originals = {name: getattr(os, name) for name in CALLS}
    emit = SealingWriter._emit

    def struck(original: Callable) -> Callable:
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] - 1 == number:
                strike()
            return original(*args, **kwargs)

        return call

    for name, original in originals.items():
        setattr(os, name, struck(original))
    SealingWriter._emit = _recording(struck(emit))
    try:
        yield count
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
        SealingWriter._emit = emit


def _recording(call: Callable) -> Callable:
    """Let the writer see the error, as its own file would have shown it."""

    def emit(self: SealingWriter, data: bytes) -> None:
        try:
            call(self, data)
        except OSError as error:
            self.error = self.error or error
            raise

    return emit


def count_calls(action: Callable[[], object]) -> int:
    with fault_at(-1, lambda: None) as count:
        action()
    return count[0]


def raising(code: int) -> Callable[[], None]:
    def strike() -> None:
        raise OSError(code, os.strerror(code))

    return strike


def die() -> None:
    os._exit(9)


def in_a_process(action: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save(step: int, path: Path) -> None:
    state = {"step": step, "weight": torch.full((50,), float(step))}
    AtomicCheckpointIO().save_checkpoint(state, path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "last.ckpt"
    save(1, path)
    return path


def assert_whole(path: Path, acknowledged: int, attempted: int) -> None:
    """The file is the acknowledged one or, where the fault came after the rename, the next."""
    assert verify_checkpoint(path)
    found = AtomicCheckpointIO().load_checkpoint(path)
    assert found["step"] in (acknowledged, attempted)
    assert torch.equal(found["weight"], torch.full((50,), float(found["step"])))


@pytest.mark.parametrize("code", ERRORS)
def test_an_error_at_any_call_of_a_save(checkpoint: Path, code: int) -> None:
    calls = count_calls(lambda: save(1, checkpoint))
    assert calls >= 5
    reported = 0
    for number in range(calls):
        try:
            with fault_at(number, raising(code)):
                save(2, checkpoint)
        except OSError as error:
            reported += 1
            assert str(checkpoint) in str(error)
            assert_whole(checkpoint, 1, 2)
        else:  # only the removal of what is gone, or a close after all is written
            assert AtomicCheckpointIO().load_checkpoint(checkpoint)["step"] == 2
        save(1, checkpoint)
        assert [file.name for file in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert reported >= calls - 3


def test_death_at_any_call_of_a_save(checkpoint: Path) -> None:
    for number in range(count_calls(lambda: save(1, checkpoint))):

        def killed(number: int = number) -> None:
            with fault_at(number, die):
                save(2, checkpoint)

        assert in_a_process(killed) == 9
        assert_whole(checkpoint, 1, 2)
        save(1, checkpoint)  # sweeps what the dead one left
        assert [file.name for file in checkpoint.parent.iterdir()] == [checkpoint.name]


DOCUMENTS = [[1, 2, 3], [], [4, 5]]


def write_store(path: Path) -> None:
    with TokenStoreWriter(path, vocab_size=10) as writer:
        for document in DOCUMENTS:
            writer.add(document)


@pytest.mark.parametrize("strike", [*map(raising, ERRORS), die], ids=[*map(str, ERRORS), "death"])
def test_a_fault_at_any_call_of_a_store(tmp_path: Path, strike: Callable[[], None]) -> None:
    calls = count_calls(lambda: write_store(tmp_path / "first"))
    assert calls >= 8
    for number in range(calls):
        path = tmp_path / str(number)

        def struck(path: Path = path, number: int = number) -> None:
            with fault_at(number, strike):
                write_store(path)

        status = in_a_process(struck)
        if path.exists():
            store = TokenStore(path)
            store.verify()
            assert [document.tolist() for document in store] == DOCUMENTS
        else:
            assert status != 0
            write_store(path)  # a second try is not in the way of the first
            TokenStore(path).verify()


def test_the_fault_is_one(checkpoint: Path) -> None:
    """The harness itself: a file that is really torn is told apart."""
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError):
        verify_checkpoint(checkpoint)
