"""Errors that are raised on purpose: each says what is wrong, where, and what to do about it.

Every class is also the built-in error of its kind, so ``except ValueError`` catches it as usual.
The command line prints these as one sentence; any other exception keeps its traceback, because it
is a fault of the program and not of its input.
"""

from __future__ import annotations

import errno

__all__ = [
    "ExistingFileError",
    "FileAccessError",
    "InvalidTypeError",
    "InvalidValueError",
    "LightningLLMError",
    "MissingFileError",
    "MissingKeyError",
    "MissingPackageError",
    "NotSavedError",
    "UnsupportedError",
]


class LightningLLMError(Exception):
    """Base class of all errors that this package raises on purpose."""


class InvalidValueError(LightningLLMError, ValueError):
    """An argument, a key of a recipe or the contents of a file have a value that cannot be used."""


class InvalidTypeError(LightningLLMError, TypeError):
    """An argument or a key of a recipe is of the wrong type."""


class MissingKeyError(LightningLLMError, KeyError):
    """A mapping lacks a key that is needed."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which puts a sentence in quotes.
        return str(self.args[0]) if self.args else ""


class MissingFileError(LightningLLMError, FileNotFoundError):
    """A file or folder is not there."""


class ExistingFileError(LightningLLMError, FileExistsError):
    """A file or folder is in the way and is not replaced."""


class FileAccessError(LightningLLMError, PermissionError):
    """A file or folder cannot be read or written by this user."""


class NotSavedError(LightningLLMError, OSError):
    """Something could not be written."""


def not_saved(number: int, message: str, *file: str) -> OSError:
    """Return the error of something that could not be written, of the kind that the number is of.

    Args:
        number: As of ``errno``; a refused permission gives a `FileAccessError`.
        message: What happened.
        file: Its name, if the message has none.
    """
    kind = FileAccessError if number in (errno.EACCES, errno.EPERM) else NotSavedError
    return kind(number, message, *file)


class MissingPackageError(LightningLLMError, ModuleNotFoundError):
    """An optional package is needed; the message names it and its extra."""


class UnsupportedError(LightningLLMError, RuntimeError):
    """Something that was asked for cannot be done in this situation."""
