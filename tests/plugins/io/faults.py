"""Faults done to a process for real: killed at a byte, out of space, without permission."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from lightning_llm.plugins.io.sealed_file import SealingWriter

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def in_child(function: Callable[[], Any]) -> tuple[int, str]:
    """Run a function in a forked process.

    Returns:
        Its exit status, or minus the signal that ended it, and what it printed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        # A pipe: a limit on the size of files would cut what pytest captures in one.
        for handle in (1, 2):
            os.dup2(writer, handle)
        sys.stdout = sys.stderr = os.fdopen(writer, "w", buffering=1)
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output


def kill_after(num_bytes: int) -> None:
    """Make this process die by SIGKILL once it has written so much of a checkpoint."""
    written = 0
    emit = SealingWriter._emit

    def counted(self: SealingWriter, data: bytes) -> None:
        nonlocal written
        room = num_bytes - written
        emit(self, data[:room])
        written += len(data)
        if written > num_bytes:
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        emit(self, data[room:])

    SealingWriter._emit = counted


def limit_file_size(num_bytes: int) -> None:
    """Make the kernel refuse to let any file of this process grow larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def become_nobody() -> None:
    """Give up root's right to write everywhere."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
