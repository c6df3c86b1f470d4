"""Which files paths, globs and folders stand for: all of them, each once, and nothing silently."""

from __future__ import annotations

import errno
import fnmatch
import glob
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_llm.data.file_kinds import JSON_LINES, layout_of
from lightning_llm.errors import (
    FileAccessError,
    InvalidTypeError,
    InvalidValueError,
    MissingFileError,
)

_LOG = logging.getLogger(__name__)
_DIRECTORY_SUFFIXES = (".txt", *JSON_LINES, ".parquet")


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path for messages: a byte of its name that is no UTF-8 becomes ``\\xff``."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    return text


def listed(patterns: Any, argument: str = "files") -> list[str]:
    """Return the paths and patterns of an argument as strings, ``~`` expanded.

    Args:
        patterns: One path or pattern, or several.
        argument: Its name, for messages.

    Raises:
        TypeError: It is no path and no list of paths.
        ValueError: It is empty.
    """
    if isinstance(patterns, Mapping):
        raise InvalidTypeError(f"{argument}: {_of_mapping(patterns, argument)}")
    if isinstance(patterns, str | os.PathLike):
        given: list[Any] = [patterns]
    elif isinstance(patterns, bytes) or not isinstance(patterns, Iterable):
        raise InvalidTypeError(
            f"{argument}={patterns!r}: expected a path or glob, or a list of them, got "
            f"{type(patterns).__name__}."
        )
    else:
        given = list(patterns)
    if not given:
        raise InvalidValueError(f"{argument}: no files given: expected at least one path or glob.")
    for entry in given:
        if not isinstance(entry, str | os.PathLike) or isinstance(os.fspath(entry), bytes):
            nested = isinstance(entry, list | tuple)
            hint = " Write one flat list." if nested else ""
            raise InvalidTypeError(
                f"{argument}: expected a path or glob, got {type(entry).__name__} {entry!r}.{hint}"
            )
    return [os.path.expanduser(os.fspath(entry)) for entry in given]


def _of_mapping(given: Mapping[Any, Any], argument: str) -> str:
    values: list[str] = []
    for value in given.values():
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
        values += [str(one) for one in (value if several else [value])]
    keys = {str(key) for key in given}
    parts = sorted(keys & {"train", "val", "validation", "valid", "test"})
    hint = ""
    if parts and argument.startswith(("train", "val", "test")):
        hint = " Validation and test data have arguments of their own: val_… and test_…"
    return (
        f"expected a path, a glob or a list of them, got a mapping with the keys "
        f"{sorted(keys)}. Write the files as a list: {values!r}.{hint}"
    )


def expand_files(
    patterns: str | Path | Sequence[str | Path],
    *,
    exclude_folders: Sequence[str] = (),
    argument: str = "files",
    unique: bool = True,
) -> list[Path]:
    """Turn paths, globs and directories into the files they stand for.

    ``**`` in a glob matches any depth, through links to folders as well; a folder that is reached
    again that way is not read again. A directory stands for the ``.txt``, ``.jsonl`` and
    ``.parquet`` files below it (compressed or not, hidden ones left out); other suffixes need a
    glob, such as ``src/**/*.py``. A path with brackets that is there is no pattern.

    Nothing is left out silently: a link that leads nowhere and a folder that cannot be listed are
    errors, and a file that is listed or matched several times is read once, with a warning.

    Args:
        patterns: Paths, globs and directories.
        exclude_folders: Names of folders to leave out, at any depth below a directory or below the
            part of a glob that has no wildcard.
        argument: Name of the argument that gives the patterns, for messages.
        unique: Whether a file counts once, however often it is reached.

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError: A path or pattern stands for no file, or a link leads nowhere.
        PermissionError: A file is not readable, or a folder cannot be listed.
        ValueError: No pattern at all, or a path that is no regular file.
        TypeError: A pattern is neither a string nor a path.
    """
    if isinstance(exclude_folders, str):
        raise InvalidTypeError(
            f"exclude_folders: expected a list of names, got {exclude_folders!r}."
        )
    excluded = frozenset(exclude_folders)
    found = [file for pattern in listed(patterns, argument) for file in _expand(pattern, excluded)]
    found.sort(key=os.path.abspath)
    if unique:
        found = once(found, argument, os.path.realpath)
    for file in found:
        if not os.access(file, os.R_OK):
            raise FileAccessError(f"{shown(file)}: no permission to read it.")
    return [Path(file) for file in found]


def once(paths: Sequence[str], argument: str, identity: Callable[[str], str]) -> list[str]:
    """Return each path once, the first of those that are the same, and warn of the others."""
    names: dict[str, list[str]] = {}
    for path in paths:
        names.setdefault(identity(path), []).append(path)
    again = [same for same in names.values() if len(same) > 1]
    if again:
        first, second = again[0][:2]
        also = "" if os.path.abspath(first) == os.path.abspath(second) else f" (as {shown(second)})"
        more = f" and {len(again) - 1} more" if len(again) > 1 else ""
        _LOG.warning(
            "%s: %s%s%s given several times, by repeated paths, overlapping patterns or links; "
            "each is read once",
            argument,
            shown(first),
            also,
            f"{more} are" if more else " is",
        )
    return [same[0] for same in names.values()]


def _expand(pattern: str, excluded: frozenset[str]) -> list[str]:
    try:
        mode = os.stat(pattern).st_mode if pattern else None
    except (OSError, ValueError) as error:
        mode = None
        _refuse_broken(pattern, error)
    if mode is not None:
        if stat.S_ISDIR(mode):
            return _files_below(pattern, excluded)
        if not stat.S_ISREG(mode):
            raise InvalidValueError(f"{shown(pattern)}: not a regular file.")
        return [pattern]
    if not pattern or not glob.has_magic(pattern):
        raise MissingFileError(f"no file {shown(pattern)!r} (working directory: {os.getcwd()}).")
    walk = Walk(excluded)
    files: list[str] = []
    folders = 0
    for path, kind in walk.matches(pattern):
        if kind == "folder":
            folders += 1
        else:
            files.append(walk.checked(path, kind))
    if not files:
        if walk.left_out:
            raise _all_excluded(pattern, Walk().matches(pattern), excluded)
        only = " but directories" if folders else ""
        literal = (
            " Brackets stand for one of the characters in them; write '[[]' for a bracket itself."
            if "[" in pattern
            else ""
        )
        raise MissingFileError(
            f"no file matches {shown(pattern)!r}: nothing found{only} (working directory: "
            f"{os.getcwd()}).{literal}"
        )
    walk.warn()
    return files


def _refuse_broken(path: str, error: OSError | ValueError) -> None:
    """Refuse a path that is there and leads nowhere, or that cannot be looked at."""
    if isinstance(error, ValueError):
        raise InvalidValueError(f"{path!r} is no path: {error}.") from None
    if isinstance(error, PermissionError):
        raise FileAccessError(f"{shown(path)}: no permission to reach it.") from None
    if error.errno == errno.ELOOP or os.path.islink(path):
        raise leads_nowhere(path)


def leads_nowhere(path: str) -> MissingFileError:
    """Build the error for a link whose target is not there."""
    try:
        target = f" to {shown(os.readlink(path))!r}"
    except OSError:
        target = ""
    return MissingFileError(
        f"{shown(path)}: a link{target} that leads nowhere, so its text would be missing. Bring "
        "back what it points to (a download cache, a mount), or remove the link."
    )


def _all_excluded(
    pattern: str, matches: Iterable[tuple[str, str]], excluded: frozenset[str]
) -> MissingFileError:
    count = sum(kind == "file" for _, kind in matches)
    if not count:
        return MissingFileError(
            f"no file matches {shown(pattern)!r} (working directory: {os.getcwd()}), inside or "
            f"outside of exclude_folders={sorted(excluded)}."
        )
    return MissingFileError(
        f"{shown(pattern)!r}: every one of the {count} files lies in one of exclude_folders="
        f"{sorted(excluded)}."
    )


def _files_below(directory: str, excluded: frozenset[str]) -> list[str]:
    walk = Walk(excluded)
    files: list[str] = []
    others: Counter[str] = Counter()
    for path, kind in walk.below(directory, ("**", "*")):
        if kind == "folder":
            continue
        if layout_of(Path(path)) in _DIRECTORY_SUFFIXES:
            files.append(walk.checked(path, kind))
        elif kind != "broken":
            others[os.path.splitext(path)[1]] += 1
    if not files:
        if walk.left_out:
            everything = Walk().below(directory, ("**", "*"))
            chosen = (m for m in everything if layout_of(Path(m[0])) in _DIRECTORY_SUFFIXES)
            raise _all_excluded(directory, chosen, excluded)
        like = next((suffix for suffix in sorted(others) if suffix), ".py")
        raise MissingFileError(
            f"no {', '.join(_DIRECTORY_SUFFIXES)} file below the directory {shown(directory)!r} "
            f"(working directory: {os.getcwd()}); suffixes there: {sorted(others)}. Name "
            f"files of other kinds by a glob, such as {os.path.join(shown(directory), '**', '*')}"
            f"{like}"
        )
    if others:
        counts = ", ".join(
            f"{n} {suffix or 'without suffix'}" for suffix, n in others.most_common(5)
        )
        _LOG.warning(
            "%s: a folder stands for its %s files; left out: %s. Name them by a glob to read them",
            shown(directory),
            ", ".join(_DIRECTORY_SUFFIXES),
            counts,
        )
    walk.warn()
    return files


@dataclass
class Walk:
    """What a glob matches; each folder below a ``**`` once, so that circles of links end.

    Attributes:
        excluded: Names of folders to leave out behind the part of a pattern without wildcards.
        broken: Links on the way that lead nowhere: folders, perhaps.
        again: Folders that were reached a second time, through links.
        left_out: Whether an excluded folder was met.
    """

    excluded: frozenset[str] = frozenset()
    broken: dict[str, None] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    left_out: bool = False

    def matches(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Yield each match and what it is: ``file``, ``folder``, ``broken`` or ``special``.

        As in `glob.glob` with ``recursive=True``, a wildcard does not match a leading dot. A part
        with brackets that is there literally stands for itself.
        """
        drive, rest = os.path.splitdrive(pattern.replace(os.altsep or os.sep, os.sep))
        root = drive + rest[: len(rest) - len(rest.lstrip(os.sep))]
        parts = [part for part in rest.split(os.sep) if part]
        for path, kind in self.below(root, parts):
            if kind == "folder" or not rest.endswith(os.sep):
                yield path, kind

    def below(self, folder: str, parts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield what the parts of a pattern match below a folder, as `matches` does."""
        for path in self._below(folder, parts, False):
            kind = _kind(path)
            if kind is not None:
                yield path, kind

    def checked(self, path: str, kind: str) -> str:
        """Return the path of a regular file.

        Raises:
            FileNotFoundError: It is a link that leads nowhere.
            ValueError: It is a pipe, a socket or a device.
        """
        if kind == "broken":
            raise leads_nowhere(path)
        if kind == "special":
            raise InvalidValueError(f"{shown(path)}: not a regular file.")
        return path

    def warn(self) -> None:
        """Warn of links that led nowhere, or back."""
        if self.broken:
            _LOG.warning(
                "%s%s: links that lead nowhere; if they stand for folders, the files in them are "
                "missing",
                shown(next(iter(self.broken))),
                f" and {len(self.broken) - 1} more" if len(self.broken) > 1 else "",
            )
        if self.again:
            _LOG.warning(
                "%s%s: links to folders that are read already; they are not followed again",
                shown(self.again[0]),
                f" and {len(self.again) - 1} more" if len(self.again) > 1 else "",
            )

    def _below(self, base: str, parts: Sequence[str], wild: bool) -> Iterator[str]:
        """Yield what the parts of a pattern match below a folder, sorted."""
        if not parts:
            yield base
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            for folder in self._folders(base):
                if rest:
                    yield from self._below(folder, rest, True)
                else:
                    yield from (entry for entry, _ in self._entries(folder, "*"))
            return
        path = os.path.join(base, part)
        if not glob.has_magic(part) or ("[" in part and os.path.lexists(path)):
            if os.path.lexists(path) and not self._is_excluded(part, wild, bool(rest)):
                yield from self._below(path, rest, wild)
            return
        for entry, kind in self._entries(base, part):
            if not rest:
                yield entry
            elif kind == "broken":
                self._note_broken(entry)
            elif kind == "folder" and not self._is_excluded(os.path.basename(entry), True, True):
                yield from self._below(entry, rest, True)

    def _note_broken(self, link: str) -> None:
        """Note a link that may stand for a folder: those have no suffix, or a number."""
        if not os.path.splitext(link)[1].strip(".0123456789"):
            self.broken[link] = None

    def _is_excluded(self, name: str, wild: bool, inner: bool) -> bool:
        if wild and inner and name in self.excluded:
            self.left_out = True
            return True
        return False

    def _folders(self, base: str) -> Iterator[str]:
        """Yield a folder and all below it, depth first; each real folder once."""
        seen: set[tuple[int, int]] = set()
        waiting = [base]
        while waiting:
            folder = waiting.pop()
            try:
                state = os.stat(folder or os.curdir)
            except OSError:
                continue
            if not stat.S_ISDIR(state.st_mode):
                continue
            if (state.st_dev, state.st_ino) in seen:
                self.again.append(folder)
                continue
            seen.add((state.st_dev, state.st_ino))
            yield folder
            below = []
            for entry, kind in self._entries(folder, "*"):
                if kind == "broken":
                    self._note_broken(entry)
                if kind == "folder" and not self._is_excluded(os.path.basename(entry), True, True):
                    below.append(entry)
            waiting += reversed(below)

    def _entries(self, folder: str, pattern: str) -> list[tuple[str, str]]:
        """Return the entries of a folder that a part of a pattern matches, and their kinds.

        Raises:
            PermissionError: The folder cannot be listed.
        """
        found = []
        try:
            with os.scandir(folder or os.curdir) as entries:
                for entry in entries:
                    name = entry.name
                    hidden = name.startswith(".") and not pattern.startswith(".")
                    if not hidden and fnmatch.fnmatch(name, pattern):
                        found.append((os.path.join(folder, name), _kind_of_entry(entry)))
        except PermissionError:
            raise FileAccessError(
                f"{shown(folder)}: no permission to list this folder, so files in it may be "
                "missing. Ask for the permission, or leave it out by a narrower pattern or by "
                "exclude_folders."
            ) from None
        except (FileNotFoundError, NotADirectoryError):
            return []
        # As if each name ended in a separator: that is the order of the whole paths.
        return sorted(found, key=lambda entry: entry[0] + os.sep)


def _kind_of_entry(entry: os.DirEntry[str]) -> str:
    """Return ``folder``, ``broken`` (a link that cannot be followed) or ``file`` (all else)."""
    try:
        if entry.is_dir():
            return "folder"
        return "broken" if entry.is_symlink() and not os.path.exists(entry.path) else "file"
    except OSError:
        return "broken"


def _kind(path: str) -> str | None:
    """Return what a path is; None if it is gone."""
    try:
        mode = os.stat(path or os.curdir).st_mode
    except FileNotFoundError:
        return "broken" if os.path.islink(path) else None
    except PermissionError:
        raise FileAccessError(f"{shown(path)}: no permission to reach it.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "broken"
        raise
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"
