"""How a command ends that failed: a sentence for what was refused on purpose, else a traceback.

Refused on purpose is what this package raises with a class of `lightning_llm.errors`, what
Lightning raises after a check of its own, and what jsonargparse says of a recipe. Every other
exception is a fault of a program, be it of this package or of the user: it keeps its traceback, and
a last line says where it arose and what a report needs.

Of several ranks that fail alike, one prints.
"""

from __future__ import annotations

import dis
import hashlib
import os
import platform
import re
import select
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from lightning_llm import cli
from lightning_llm.errors import LightningLLMError

_PACKAGE = str(Path(__file__).resolve().parent.parent)
# What wraps the errors of others into its own, and so may hold a deliberate one.
_WRAPPERS = ("jsonargparse", "omegaconf")
_READERS = ("yaml", "json", "importlib")  # which are tried on a value of unknown type
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning", "lightning_utilities")
_LIGHTNING_CHECKS = (ValueError, TypeError, ModuleNotFoundError)
# An error of another process, as text: its traceback, then "module.Class: message".
_ORIGINAL = re.compile(r"^((?:\w+\.)+\w+): ", re.MULTILINE)
_LOST_CONTACT = re.compile(
    r"Connection (closed|reset) by peer|recvValue failed|NCCL (communicator was aborted|timeout)|"
    r"Broken pipe|Application timeout caused pair closure|remote process exited",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)

_RANK_NAMES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "LOCAL_RANK")
_LAUNCHER_NAMES = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_LAUNCH_NAMES = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "SLURM_STEP_ID")
_HEAD_START_SECONDS = 3.0  # of the first rank over the others
_LATE_SECONDS = 5.0  # by which one rank may start after the first has failed
_KEPT_SECONDS = 600.0


def report_failure(command: str, error: Exception) -> int:
    """Say why a command failed; return its exit status.

    Args:
        command: The command, such as ``fit``.
        error: What ended it.

    Raises:
        Exception: ``error`` itself, with a note, if nobody raised it on purpose.
    """
    if isinstance(error, BrokenPipeError) and _reader_has_left():
        return 141  # as of a program that SIGPIPE ends
    if os.environ.get("LIGHTNING_LLM_TRACEBACK"):
        raise error
    program = f"lightning-llm {command}"
    real = _unwrapped(error)
    sentence = sentence_of(real)
    if sentence is not None:
        place = place_of_user(real)
        tell(f"{program}: error: {sentence}{place and f' (called at {place})'}\n")
        return 1
    if real is not error:
        error.__cause__ = real  # jsonargparse names the first alternative that failed, any of them
    if _follows_from_another_rank(real):
        sys.stderr.write(f"{program}: rank {rank()} stopped because another rank failed\n")
        return 1
    if not _is_first_to_tell(f"{type(real).__name__}: {real}"):
        return 1
    error.add_note(f"{program}: {advice(real)}")
    raise error


def sentence_of(error: BaseException) -> str | None:
    """Return what an error that was raised on purpose says, None for any other error."""
    if isinstance(error, LightningLLMError):
        return _of_another_process(str(error)) or str(error)
    if type(error).__name__ == "MisconfigurationException":
        return str(error)
    # A check says `raise`; where something merely went wrong there is no such statement.
    if _says_raise(error):
        library = _library_raising(error)
        if library in _LIGHTNING and isinstance(error, _LIGHTNING_CHECKS):
            return str(error)
        if library == "jsonargparse" and isinstance(error, ValueError | TypeError):
            from lightning_llm.cli.parse_errors import find_problem

            return str(find_problem(str(error)))
    return _of_another_process(str(error))


def advice(error: BaseException) -> str:
    """Return the line below the traceback of an error that nobody raised on purpose."""
    if isinstance(error, MemoryError) or _ran_out_of_memory(error):
        return (
            "memory ran out. Lower data.init_args.micro_batch_size and raise "
            "trainer.accumulate_grad_batches by the same factor, which trains the same; "
            "`lightning-llm plan` tells what a recipe needs and where it goes"
        )
    place, users = _place_raising(error), place_of_user(error)
    if users:
        where = f"your own code had a part in this error, at {users}"
    else:
        where = "this is no error that lightning_llm raises on purpose"
    raised = "" if place == users else f", raised at {place}"
    return (
        f"{where}. If the fault is the package's, please report the traceback with this line: "
        f"{', '.join(_versions())}{raised}"
    )


def tell(text: str) -> None:
    """Write a message to standard error, once for all ranks of a machine that have the same."""
    if _is_first_to_tell(text):
        sys.stderr.write(text)


def _unwrapped(error: BaseException) -> BaseException:
    """Return what a parsing library wrapped, the error itself where none did."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if _library_raising(error) not in _WRAPPERS:
            break
        inside = [_unwrapped(one) for one in _alternatives(error)]
        strange = [one for one in inside if _library_raising(one) not in (*_WRAPPERS, *_READERS)]
        if not strange:
            break
        error = next((one for one in strange if isinstance(one, LightningLLMError)), strange[0])
    return error


def _alternatives(error: BaseException) -> list[BaseException]:
    """What went wrong with each type of a key; of a key of one type, the cause."""
    found: list[BaseException] = []
    trace = error.__traceback__
    while trace is not None:
        listed = trace.tb_frame.f_locals.get("exceptions")
        if _library_of(trace.tb_frame) == "jsonargparse" and isinstance(listed, list):
            found += [one for one in listed if isinstance(one, BaseException)]
        trace = trace.tb_next
    if error.__cause__ is not None and error.__cause__ not in found:
        found.append(error.__cause__)
    return found


def _of_another_process(text: str) -> str | None:
    """Return the message of a deliberate error that another process sent as text."""
    if "Traceback (most recent call last)" not in text:
        return None
    *_, last = [None, *_ORIGINAL.finditer(text)]
    if last is None:
        return None
    module, _, name = last[1].rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    if isinstance(kind, type) and issubclass(kind, LightningLLMError):
        return text[last.end() :].strip()
    return None


# ------------------------------------------------------------------ where an error arose


def _innermost(error: BaseException) -> TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _says_raise(error: BaseException) -> bool:
    """Whether the error comes from a ``raise`` statement."""
    trace = _innermost(error)
    if trace is None:
        return False
    code, instruction = trace.tb_frame.f_code.co_code, trace.tb_lasti
    return 0 <= instruction < len(code) and dis.opname[code[instruction]] == "RAISE_VARARGS"


def _library_raising(error: BaseException) -> str:
    trace = _innermost(error)
    return "" if trace is None else _library_of(trace.tb_frame)


def _library_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def place_of_user(error: BaseException) -> str:
    """Return the last place in the user's own code that an error, or its cause, came through."""
    last, seen = "", set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for frame, line in traceback.walk_tb(cause.__traceback__):
            if _is_of_user(frame.f_code.co_filename):
                last = _place(frame, line)
        cause = cause.__cause__
    return last


def _is_of_user(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = os.path.realpath(file)
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed = [_PACKAGE, *(os.path.realpath(folder) for folder in paths if folder)]
    inside = any(path.startswith(folder + os.sep) for folder in installed)
    return not inside and "site-packages" not in path and "dist-packages" not in path


def _place_raising(error: BaseException) -> str:
    trace = _innermost(error)
    return "" if trace is None else _place(trace.tb_frame, trace.tb_lineno)


def _place(frame: FrameType, line: int) -> str:
    file = os.path.realpath(frame.f_code.co_filename)
    if file.startswith(_PACKAGE + os.sep):
        file = os.path.relpath(file, os.path.dirname(_PACKAGE))
    elif not _is_of_user(file):
        file = str(frame.f_globals.get("__name__", file))
    return f"{file}:{line} ({frame.f_code.co_name})"


def _ran_out_of_memory(error: BaseException) -> bool:
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of any device
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def _versions() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    from lightning_llm import __version__

    yield f"lightning_llm {__version__}"
    for name in ("lightning", "torch", "transformers"):
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
    yield f"Python {platform.python_version()}, {platform.system()}"
    if (number := rank()) is not None:
        yield f"rank {number}"


# ------------------------------------------------------------------ ranks and readers


def _reader_has_left() -> bool:
    """Whether nobody reads standard output any more; then nothing else is written to it."""
    try:
        output = sys.stdout.fileno()
        broken = select.poll()
        broken.register(output, 0)  # an error is reported without being asked for
        if not broken.poll(0):
            return False
    except (OSError, ValueError, AttributeError):  # no file, or a system without poll
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def rank() -> int | None:
    """Return the rank of this process, None where no launcher numbered it."""
    for name in _RANK_NAMES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None


def _claims() -> Path:
    """Return the folder in which the ranks of one launch on this machine leave what they said."""
    by_launcher = any(name in os.environ for name in _LAUNCHER_NAMES)
    starts_the_others = not by_launcher and rank() == 0  # Lightning's own launcher
    family = os.getpid() if starts_the_others else os.getppid()
    parts = [str(family), *(os.environ.get(name, "") for name in _LAUNCH_NAMES)]
    launch = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir(), f"lightning_llm-failures-{user}", launch)


def _is_first_to_tell(text: str) -> bool:
    """Whether no other rank of this launch has said the same; the first rank always speaks."""
    number = rank()
    if number is None:
        return True
    # What differs between ranks is their own number and address.
    alike = re.sub(r"rank:? ?\d+|:\d+|0x[0-9a-f]+", "", text)
    claim = _claims() / hashlib.sha256(alike.encode()).hexdigest()[:16]
    with suppress(OSError):  # said twice is better than not at all
        claim.parent.parent.mkdir(mode=0o700, exist_ok=True)
        _forget_old(claim.parent.parent)
        claim.parent.mkdir(mode=0o700, exist_ok=True)
        until = time.time() + _HEAD_START_SECONDS if number else 0.0
        while number:
            if _is_of_this_launch(claim):
                return False
            if time.time() >= until:
                break
            time.sleep(0.05)
        claim.touch()
    return True


def _is_of_this_launch(claim: Path) -> bool:
    """Whether something was said while this process ran, and not by an earlier one."""
    return claim.exists() and claim.stat().st_mtime >= cli.started_at - _LATE_SECONDS


def _forget_old(folder: Path) -> None:
    for launch in folder.iterdir():
        with suppress(OSError):
            if time.time() - launch.stat().st_mtime > _KEPT_SECONDS:
                for claim in launch.iterdir():
                    claim.unlink()
                launch.rmdir()


def _follows_from_another_rank(error: BaseException) -> bool:
    """Whether a rank lost contact to one that has told why it failed."""
    if rank() is None or not isinstance(error, RuntimeError | OSError):
        return False
    if not _LOST_CONTACT.search(str(error)):
        return False
    with suppress(OSError):
        return any(map(_is_of_this_launch, _claims().iterdir()))
    return False
