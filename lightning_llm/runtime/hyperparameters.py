"""Hyperparameters that are plain data, whatever a subclass hands to ``save_hyperparameters``.

A checkpoint is read as data, so what it holds of a constructor's arguments must be data as well,
and enough of them to call the constructor again.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pkgutil import resolve_name
from types import FrameType
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_llm.errors import InvalidTypeError, InvalidValueError

_PACKAGE = "lightning_llm"


class PlainHyperparameters:
    """For a LightningModule or datamodule of this package that others subclass.

    The class of this package gives its own arguments to ``save_own_hyperparameters``, in its
    constructor. Arguments that a subclass adds are then kept as well where they are plain data,
    with or without a call of ``save_hyperparameters`` in the subclass.
    """

    def save_own_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Keep the arguments of the class of this package, as plain data."""
        frame, notes = inspect.currentframe(), notes_of(self)
        calls = list(_constructor_calls(self, frame and frame.f_back))
        added = _arguments_of_users(calls)
        outermost = calls[-1][1] if calls and not _is_ours(calls[-1][0]) else None
        if outermost is not None:
            # What the subclass takes and nothing else: it is called with them again.
            values = {name: value for name, value in values.items() if name in outermost}
            notes.rebuilt = {n: kind for n, v in outermost.items() if (kind := _kind_of(v))}
        notes.own = dict(values)
        self._save(values, logger=True)
        kept = {
            name: plain for name, value in added.items() if (plain := _plain(value)) is not _NOT
        }
        notes.missing |= {
            name: type(value).__name__
            for name, value in added.items()
            if name not in kept and not _is_default(type(self), name, value)
        }
        # Not those that are logged: with a datamodule's of the same name Lightning would stop.
        hparams: Any = self.hparams  # type: ignore[attr-defined]
        hparams.update({k: v for k, v in kept.items() if k not in hparams})

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Save arguments of the constructor, as Lightning's method of this name.

        Configurations of this package are kept as mappings of their fields. The arguments of the
        class of this package are kept in any case, without which no checkpoint could be loaded.

        Args:
            *args: Names of arguments, or a mapping; all arguments if not given.
            ignore: Names of arguments to leave out. `load_from_checkpoint` then needs them.
            frame: Of the constructor; that of the caller if not given.
            logger: Log them.

        Raises:
            TypeError: An argument is no plain data.
            ValueError: There is no argument of a name.
        """
        if frame is None:
            here = inspect.currentframe()
            frame = here and here.f_back
        arguments: dict[str, Any] = {}
        for _, given in _constructor_calls(self, frame):
            arguments |= given
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        chosen: dict[str, Any] = {} if args else arguments
        for one in args:
            if not isinstance(one, str):
                chosen = chosen | _fields(one, arguments)
            elif one in arguments:
                chosen[one] = arguments[one]
            else:
                raise InvalidValueError(
                    f"save_hyperparameters({one!r}): the constructor of {type(self).__name__} has "
                    f"no argument of that name; it has {', '.join(arguments)}"
                )
        chosen = {name: value for name, value in chosen.items() if name not in ignored}
        plain = {name: _plain(value) for name, value in chosen.items()}
        own = _parameters_of_ours(type(self))
        strange = [name for name, value in plain.items() if value is _NOT and name not in own]
        if strange:
            listed = ", ".join(f"{name}={chosen[name]!r:.60}" for name in strange)
            raise InvalidTypeError(
                f"{type(self).__name__}: {listed}: no plain data (numbers, texts, lists and "
                f"mappings of them), so no checkpoint could be loaded with it. Leave it out with "
                f"save_hyperparameters(ignore={strange}), and give it to load_from_checkpoint"
            )
        missing = dict.fromkeys(ignored & arguments.keys() - own, "ignored")
        for name in list(missing):
            if _is_default(type(self), name, arguments[name]):
                del missing[name]
        notes_of(self).missing |= missing
        kept = {name: value for name, value in plain.items() if value is not _NOT}
        ours = notes_of(self).own
        self._save({**kept, **ours}, logger=logger, ignore=sorted(ignored - ours.keys()))

    def _save(self, values: Mapping[str, Any], *, logger: bool, ignore: Sequence[str] = ()) -> None:
        super().save_hyperparameters(dict(values), ignore=list(ignore), logger=logger)  # type: ignore[misc]


@dataclass
class Notes:
    """What is known of a constructor's arguments beside the hyperparameters.

    Attributes:
        own: Those of the class of this package, as plain data.
        rebuilt: Those that were dataclasses of this package, and which.
        missing: Those that are not saved and had another value than the default, and of what kind.
    """

    own: dict[str, Any] = field(default_factory=dict)
    rebuilt: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def notes_of(built: Any) -> Notes:
    """Return the notes of a module; a subclass may save arguments before its base is built."""
    notes: Notes = vars(built).setdefault("_hyperparameter_notes", Notes())
    return notes


def arguments_to_rebuild(
    hyperparameters: Mapping[str, Any],
    rebuilt: Mapping[str, str],
    missing: Mapping[str, str],
    given: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Return the arguments of a constructor that are objects, from what a checkpoint holds of them.

    Args:
        hyperparameters: As saved.
        rebuilt: Arguments that were dataclasses of this package, and which.
        missing: Arguments that were not saved, and of what kind they were.
        given: What the caller gives.
        where: The class and checkpoint, for messages.

    Raises:
        TypeError: An argument was neither saved nor is it given.
    """
    absent = {name: kind for name, kind in missing.items() if name not in given}
    if absent:
        listed = ", ".join(f"{name} ({kind})" for name, kind in absent.items())
        raise InvalidTypeError(
            f"{where}: the checkpoint does not hold the arguments {listed}, which had other values "
            f"than the default: give them, load_from_checkpoint(path, {next(iter(absent))}=...)"
        )
    made = {}
    for name, kind in rebuilt.items():
        value = hyperparameters.get(name)
        if name not in given and isinstance(value, Mapping) and kind.startswith(f"{_PACKAGE}."):
            made_of = resolve_name(kind)
            if isinstance(made_of, type) and is_dataclass(made_of):
                made[name] = made_of(**value)
    return made


_NOT = object()  # in place of a value that is no plain data


def _plain(value: Any) -> Any:
    if _kind_of(value):
        return asdict(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        return _NOT if get_unsafe_globals_in_checkpoint(buffer) else value
    except Exception:
        return _NOT


def _kind_of(value: Any) -> str | None:
    """Return the name of a dataclass of this package, of which ``value`` is one."""
    kind = type(value)
    ours = is_dataclass(kind) and kind.__module__.partition(".")[0] == _PACKAGE
    return f"{kind.__module__}:{kind.__qualname__}" if ours else None


def _fields(value: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a mapping or namespace holds; an argument given as itself counts under its name."""
    if isinstance(value, Mapping):
        return dict(value)
    names = [name for name, argument in arguments.items() if argument is value]
    if names:
        return {names[0]: value}
    try:
        return dict(vars(value))
    except TypeError:
        raise InvalidTypeError(
            f"save_hyperparameters takes names of arguments or a mapping, not {value!r:.60}"
        ) from None


def _constructor_calls(
    built: Any, frame: FrameType | None
) -> Iterator[tuple[FrameType, dict[str, Any]]]:
    """Yield the constructors that build an object, inside out, each with its arguments."""
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, keywords, values = inspect.getargvalues(frame)
        if not names or values.get(names[0]) is not built:
            return
        given = {name: values[name] for name in names[1:] if name in values}
        yield frame, given | dict(values.get(keywords or "") or {})
        frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE


def _arguments_of_users(calls: Sequence[tuple[FrameType, dict[str, Any]]]) -> dict[str, Any]:
    """The arguments of the outermost constructor that no class of this package takes."""
    if not calls or _is_ours(calls[-1][0]):
        return {}
    frame, given = calls[-1]
    own = _parameters_of_ours(type(frame.f_locals[frame.f_code.co_varnames[0]]))
    return {name: value for name, value in given.items() if name not in own}


def _parameters_of_ours(kind: type) -> set[str]:
    """Names that constructors of this package take."""
    ours = [one for one in kind.__mro__ if one.__module__.partition(".")[0] == _PACKAGE]
    found: set[str] = set()
    for one in ours:
        if "__init__" in vars(one):
            found |= inspect.signature(one.__init__).parameters.keys()  # type: ignore[misc]
    return found - {"self", "args", "kwargs"}


def _is_default(kind: type, name: str, value: Any) -> bool:
    parameter = inspect.signature(kind).parameters.get(name)
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return False
    try:
        return parameter.default is value or bool(parameter.default == value)
    except Exception:  # whatever the values make of a comparison
        return False
