"""How a run ended, kept in a file beside its log."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lightning_llm.errors import InvalidValueError

ENDING_FILE = "ending.json"
_LONGEST_MESSAGE = 20_000  # letters; a shape error of a large model can say much more
_LONGEST_SENTENCE = 300

State = Literal["finished", "interrupted", "error"]


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        state: ``finished``, ``interrupted`` (Ctrl-C, or asked to stop by a signal) or ``error``.
        step: Optimizer steps that were done.
        message: Of the exception, with its type in front; empty where there was none.
    """

    state: State
    step: int
    message: str = ""

    @classmethod
    def of(cls, exception: BaseException | None, step: int) -> Ending:
        """The ending by an exception, or without one."""
        if exception is None:
            return cls("finished", step)
        # SystemExit and KeyboardInterrupt ask for the end and are no errors; Lightning raises an
        # exception of its own for a SIGTERM.
        asked = not isinstance(exception, Exception) or type(exception).__name__.startswith("SIG")
        said = str(exception).strip()
        message = type(exception).__name__ + (f": {said}" if said else "")
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + " …"
        # The name of a file may hold what is no text.
        message = message.encode("utf-8", "backslashreplace").decode()
        return cls("interrupted" if asked else "error", step, message)

    @property
    def sentence(self) -> str:
        """``error after 12 steps: ValueError: the first line of its message``."""
        words = f"{self.state} after {self.step:,} step{'' if self.step == 1 else 's'}"
        first = self.message.partition("\n")[0][:_LONGEST_SENTENCE]
        return words + (f": {first}" if first else "")


def write_ending(directory: Path, ending: Ending) -> None:
    """Write ``ending.json``."""
    text = json.dumps(asdict(ending), indent=2, ensure_ascii=False) + "\n"
    (directory / ENDING_FILE).write_text(text, encoding="utf-8")


def read_ending(directory: Path) -> Ending | None:
    """Read ``ending.json``; None where there is none.

    Raises:
        ValueError: The file is not such a record.
    """
    path = directory / ENDING_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        state, step, message = values["state"], int(values["step"]), str(values["message"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidValueError(
            f"{path.name}: left out, not a record of how a run ended"
        ) from error
    if state not in ("finished", "interrupted", "error"):
        raise InvalidValueError(f"{path.name}: left out, its state {state!r} is none that is known")
    return Ending(state, step, message)
