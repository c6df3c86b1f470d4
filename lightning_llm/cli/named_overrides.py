"""Options that change one of several callbacks, loggers or plugins, named by its class.

``--trainer.callbacks.SampleText.prompts '["Once"]'`` changes that argument of the recipe's
`SampleText` and leaves the list as it is. jsonargparse alone reaches the last entry of a list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml

from lightning_llm.errors import InvalidValueError

_OPTION = re.compile(
    r"--trainer\.(?P<list>callbacks|logger|plugins)\.(?P<name>[A-Z]\w*)(?:\[(?P<place>\d+)\])?"
    r"(?:\.(?:init_args\.)?(?P<key>[\w.]+))?(?:=(?P<value>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Override:
    """One such option.

    Attributes:
        option: As written, without its value.
        group: ``callbacks``, ``logger`` or ``plugins``.
        name: Of the class.
        place: Which of several of that class, from 0; None where there is one.
        key: Argument of the class; None to take the entry out.
        value: What it is to be.
    """

    option: str
    group: str
    name: str
    place: int | None
    key: str | None
    value: Any


def with_named_overrides(
    arguments: Sequence[str], parse: Callable[[list[str]], Any], dump: Callable[[Any], str]
) -> list[str]:
    """Return the arguments with such options written out as the whole lists.

    Args:
        arguments: Of the command line.
        parse: From arguments to a configuration.
        dump: From a configuration to YAML.

    Raises:
        ValueError: No entry, or several, have the class of an option.
    """
    overrides, others = _split(arguments)
    if not overrides:
        return list(arguments)
    config = parse([one for one in others if not one.startswith("--print_config")])
    trainer = yaml.safe_load(dump(config))["trainer"]
    changed = {}
    for override in overrides:
        group = override.group
        if group not in changed:
            found = trainer.get(group)
            changed[group] = found if isinstance(found, list) else [found] if found else []
        _apply(override, changed[group])
    return [*others, *(f"--trainer.{name}={json.dumps(given)}" for name, given in changed.items())]


def _split(arguments: Sequence[str]) -> tuple[list[Override], list[str]]:
    overrides, others = [], []
    rest = iter(arguments)
    for argument in rest:
        found = _OPTION.fullmatch(argument)
        if found is None:
            others.append(argument)
            continue
        option, value = argument.partition("=")[0], found["value"]
        if value is None:
            value = next(rest, None)
        if value is None:
            raise InvalidValueError(f"{option} needs a value")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            read = value
        if found["key"] is None and read is not None:
            raise InvalidValueError(
                f"{option} {value}: name an argument of the class, {option}.ARGUMENT {value}, or "
                f"take the entry out with {option} null"
            )
        place = None if found["place"] is None else int(found["place"])
        overrides.append(Override(option, found["list"], found["name"], place, found["key"], read))
    return overrides, others


def _apply(override: Override, entries: list[Any]) -> None:
    names = [
        str(entry.get("class_path") if isinstance(entry, dict) else entry).rpartition(".")[2]
        for entry in entries
    ]
    places = [place for place, name in enumerate(names) if name == override.name]
    if not places:
        close = get_close_matches(override.name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names) or 'none'}"
        raise InvalidValueError(
            f"{override.option}: the recipe has no {override.name} among trainer.{override.group}; "
            f"{hint}"
        )
    if override.place is None and len(places) > 1:
        raise InvalidValueError(
            f"{override.option}: the recipe has {len(places)} of that class; say which one by its "
            f"place among them, trainer.{override.group}.{override.name}[0] for the first"
        )
    if (override.place or 0) >= len(places):
        raise InvalidValueError(
            f"{override.option}: the recipe has {len(places)} of that class, the first at [0]"
        )
    place = places[override.place or 0]
    if override.key is None:
        del entries[place]
        return
    entry = entries[place] if isinstance(entries[place], dict) else {"class_path": entries[place]}
    entries[place] = entry
    arguments = entry.setdefault("init_args", {})
    if arguments is None:
        arguments = entry["init_args"] = {}
    *outer, last = override.key.split(".")
    for name in outer:
        inner = arguments.get(name)
        arguments[name] = inner = inner if isinstance(inner, dict) else {}
        arguments = inner
    arguments[last] = override.value
