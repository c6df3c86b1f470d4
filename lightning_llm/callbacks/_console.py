"""One line of the console: written over on a terminal, line by line anywhere else."""

from __future__ import annotations

import shutil
import sys


class ConsoleLine:
    """Writes to standard error as it is at that moment.

    A terminal has one line that changes in place. A file, a pipe and a notebook get whole lines,
    without carriage returns.
    """

    def __init__(self) -> None:
        self._shown = ""  # the line that stands on the terminal without an end

    @property
    def is_terminal(self) -> bool:
        """Whether a line can be written over."""
        return sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Put ``text`` in place of what was shown last; a new line where there is no terminal."""
        if self.is_terminal:
            text = text[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write("\r" + text.ljust(len(self._shown)))
            self._shown = text
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def write(self, text: str) -> None:
        """Write whole lines above what is shown."""
        if self._shown:
            sys.stderr.write("\r" + " " * len(self._shown) + "\r")
        sys.stderr.write(f"{text}\n{self._shown}")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave what is shown as it is, and go on below."""
        if self._shown:
            sys.stderr.write("\n")
            sys.stderr.flush()
        self._shown = ""


# Control characters -> their pictures; those from 128 on have none.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)


def printable(text: str) -> str:
    """Text of a model that a terminal only shows: an untrained one emits escape codes too."""
    return text.translate(_PICTURES)


def short_number(value: float) -> str:
    """A count with three digits and more: ``843``, ``38.2k``, ``2.46M``, ``1.20B``."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0f}"


def clock_time(seconds: float) -> str:
    """A duration as ``0:42``, ``12:07``, ``3:12:07`` or ``2d 3:12:07``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if not hours:
        return f"{minute}:{second:02}"
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour}:{minute:02}:{second:02}"
