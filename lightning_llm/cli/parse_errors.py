"""What is wrong with a recipe, said in one line: where, what, and what was probably meant.

jsonargparse reports every alternative of every type on the way to a wrong key, indented like a
tree. Here the branch that was meant is followed down to its end.
"""

from __future__ import annotations

import ast
import os
import re
import traceback
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning_llm.cli.failures import place_of_user, tell
from lightning_llm.cli.recipe_keys import (
    class_names,
    fields_at,
    parameters_of,
    public_names,
    recipe_keys,
)
from lightning_llm.cli.shipped_recipes import shipped_close_to
from lightning_llm.errors import InvalidValueError

# What a recipe may name without being asked. A class path outside is refused before its module
# is imported: importing runs code.
ALLOWED_IMPORTS = ("lightning_llm", "lightning", "torch", "torchmetrics", "transformers")

_CLASS = re.compile(r"Problem with given class_path '(.+)':")
_CALLABLE = re.compile(r"expects a function or a callable class: (.+)")
_CALLABLE_END = re.compile(r"\. Got value: Namespace\(class_path='([^']+)'.*")
_KEY = re.compile(r'Parser key "(.+?)":\s*(.*)')
_NOISE = re.compile(
    r"Does not validate against any|Subtypes: |Errors:$|Given value|Expected a <class 'NoneType'>|"
    r"Subclass types expect|a class path \(str\)|a dict (with|without) |Expected a path but |"
    r"Expected a <class 'collections.abc.Iterable'>|Not of type Path: "
)
_OPTION = re.compile(r"Option '(.+?)' is not accepted")
_GROUP = re.compile(r"Group '(.+?)' does not accept option '(.+?)'")
_ARGUMENT = re.compile(r"unrecognized arguments: -*([^\s=]+)")
_ATTRIBUTE = re.compile(r"module '(.+?)' has no attribute '(.+?)'")
_DENIED = re.compile(r"Importing '([^.']+)\S*' is not allowed")
_KIND = re.compile(r"A recipe may not name ")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\w+)$")
_NO_CLASS_PATH = re.compile(
    r"Dict must include a class_path and optionally init_args, but got (.+)"
)
_NO_SUBCLASS = re.compile(r"Not a valid subclass of ")
_NO_FILE = re.compile(r"File does not exist: '(.+)'")
_NO_GROUP = re.compile(r"Unable to load config ")  # a value where there are keys
_NO_RECIPE = re.compile(r"arguments are required: .*\b(model|data)\b")
# Of several alternatives that failed, one of these is the one that was meant.
_CERTAIN = (_KIND, _OPTION, _GROUP, _ARGUMENT, _ATTRIBUTE, _DENIED, _NO_CLASS, _NO_SUBCLASS)
_LONGEST_VALUE = 80
_PARTS = ("class_path", "init_args")


class ShortErrors:
    """For a parser of jsonargparse: errors are one line, with what was probably meant."""

    exit_on_error: bool
    prog: str

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the problem and a suggestion to standard error, and exit with status 2."""
        if not self.exit_on_error:  # the parser of a class inside: the outer one reports
            super().error(message, ex)  # type: ignore[misc]
        if ex is not None and os.environ.get("LIGHTNING_LLM_TRACEBACK"):
            traceback.print_exception(ex)
        problem = find_problem(message)
        close = suggestion(problem, self)
        hint = f"\ndid you mean {close!r}?" if close else _keys_of_group(problem) or _list(problem)
        if _NO_RECIPE.search(message):
            hint = (
                "\ngive a recipe, such as --config recipes/quickstart.yaml; "
                "`lightning-llm recipes` lists those of the package"
            )
        place = None if ex is None else place_of_user(ex)
        hint += f"\nit was raised in {place}" if place else ""
        tell(f"{self.prog}: error: {problem}{hint}\n")
        raise SystemExit(2)


def command_parser(command: str, description: str) -> Any:
    """Return a parser of jsonargparse for a command, with such errors."""
    from jsonargparse import ArgumentParser

    class CommandParser(ShortErrors, ArgumentParser): ...

    return CommandParser(prog=f"lightning-llm {command}", description=description)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        place: Keys and the classes at them, from the outside in.
        class_path: The innermost class; None outside of any.
        issues: What is wrong there, one sentence for each alternative that failed.
        value: What was given, as text; empty if that is not known.
    """

    place: tuple[str, ...] = ()
    class_path: str | None = None
    issues: tuple[str, ...] = ()
    value: str = ""

    def __str__(self) -> str:
        said = list(dict.fromkeys(_readable(issue) for issue in self.issues))
        issues = " or ".join(said[:1] + [issue.removeprefix("Expected ") for issue in said[1:]])
        given = ""
        if self.value and "value:" not in issues and len(self.value) <= _LONGEST_VALUE:
            given = f". Given value: {self.value}"
        return ": ".join([*self.place, issues + given])


def find_problem(message: str) -> Problem:
    """Follow a message of jsonargparse down to what is wrong."""
    return _dig(message.splitlines(), Problem())


def _dig(lines: list[str], outer: Problem) -> Problem:
    for number, line in enumerate(lines):
        inner = _block(lines, number)
        if found := _CLASS.search(line):
            place = [*outer.place, f"({found[1]})"]
            return _dig(inner, Problem(_joined(place), found[1]))
        if found := _CALLABLE.search(line):
            lines_inside = [found[1], *inner]
            ends = [end for text in lines_inside if (end := _CALLABLE_END.search(text))]
            class_path = ends[0][1] if ends else outer.class_path
            place = [*outer.place, *[f"({class_path})"] * bool(ends)]
            plain = [_CALLABLE_END.sub("", text) for text in lines_inside]
            return _dig(plain, Problem(_joined(place), class_path))
        if found := _KEY.search(line):
            place = [*outer.place, found[1]]
            return _dig([found[2], *lines[number + 1 :]], Problem(tuple(place), outer.class_path))
    said = [line.strip(" -") for line in lines]
    issues = [line for line in said if line and not _NOISE.match(line)]
    certain = [line for line in issues if any(pattern.search(line) for pattern in _CERTAIN)]
    values = [line.partition(": ")[2] for line in said if line.startswith("Given value: ")]
    return Problem(
        outer.place,
        outer.class_path,
        tuple(certain[:1] or issues or said),
        values[0] if values else "",
    )


def _block(lines: list[str], number: int) -> list[str]:
    """Return the lines that are indented below a line."""
    indent = len(lines[number]) - len(lines[number].lstrip())
    below = lines[number + 1 :]
    for count, line in enumerate(below):
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            return below[:count]
    return below


def _joined(place: list[str]) -> tuple[str, ...]:
    """Write a class behind its key."""
    if len(place) > 1 and not place[-2].endswith(")"):
        place = [*place[:-2], f"{place[-2]} {place[-1]}"]
    return tuple(place)


def _readable(issue: str) -> str:
    issue = re.sub(r"a typing\.Literal\[(.+?)\]", r"one of \1", issue)
    issue = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", issue)
    return issue.replace(
        "Add the import path to import_path_allowlist in set_parsing_settings to allow it.",
        "If you trust it, allow it with --allow_import PACKAGE.",
    )


def suggestion(problem: Problem, parser: Any) -> str | None:
    """Return what was probably meant, if that can be told.

    Args:
        problem: What is wrong.
        parser: The parser of the whole recipe.
    """
    issue = problem.issues[0] if problem.issues else ""
    if found := _ATTRIBUTE.search(issue):
        close = _closest(found[2], public_names(found[1]))
        return close and f"{found[1]}.{close}"
    if found := _DENIED.search(issue):
        return _closest(found[1], ALLOWED_IMPORTS)
    if found := _NO_CLASS.search(issue):
        return _closest(found[1], class_names())
    if found := _NO_CLASS_PATH.search(issue):
        return _misnamed_part(found[1])
    if (found := _NO_FILE.search(issue)) and problem.place == ("config",):
        return shipped_close_to(found[1])
    if _NO_SUBCLASS.search(issue):
        return _misnamed_part(issue.partition("Got value: ")[2] or problem.value)
    if key := _unknown_key(issue):
        return _key_meant(key, problem, parser)
    return _closest_choice(problem)


def _keys_of_group(problem: Problem) -> str:
    """Say which keys there are where a single value was given for all of them."""
    if problem.class_path is None or not _NO_GROUP.search(str(problem)):
        return ""
    group = problem.place[-1]
    names = [f"{group}.{name}" for name in fields_at(problem.class_path, group)[:3]]
    return f"\n{group} takes no value but has keys: {', '.join(names)}, ..." if names else ""


def _list(problem: Problem) -> str:
    """Show the flat list that a mapping or a list of lists of files should have been."""
    key = problem.place[-1] if problem.place else ""
    try:
        given = ast.literal_eval(problem.value)
    except (ValueError, SyntaxError):
        return ""
    if not key.endswith(("_files", "_source", "_target", "_store")):
        return ""
    if isinstance(given, list):  # the part of the list that is one itself
        return "\nwrite one flat list of paths and globs"
    if not isinstance(given, dict) or not given:
        return ""
    listed = (value if isinstance(value, list) else [value] for value in given.values())
    files = [one for values in listed for one in values]
    is_meant = all(isinstance(file, str) for file in files)
    return f"\nwrite one flat list: {key}: {files}" if is_meant else ""


def _unknown_key(issue: str) -> str | None:
    """Return the key that nothing accepts, with its group."""
    if found := _GROUP.search(issue):
        return f"{found[1]}.{found[2]}"
    found = _OPTION.search(issue) or _ARGUMENT.search(issue)
    return found[1] if found else None


def _key_meant(key: str, problem: Problem, parser: Any) -> str | None:
    if problem.class_path is None:
        return _key_of_recipe(key, recipe_keys(parser))
    group, _, leaf = key.rpartition(".")
    close = _closest(leaf, fields_at(problem.class_path, group)) if group else None
    if close:
        return f"{group}.{close}"
    return _closest(key.partition(".")[0], [*parameters_of(problem.class_path), *_PARTS])


def _key_of_recipe(key: str, known: list[str]) -> str | None:
    """Find a key by its whole path, by its last part, or by its first."""
    leaf = key.rpartition(".")[2]
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    if same_leaf:
        return _closest(key, same_leaf, cutoff=0.0)
    close = _closest(key, known)
    if close:
        return close
    leaves = {other.rpartition(".")[2]: other for other in reversed(known)}
    close = _closest(leaf, leaves)
    if close:
        return leaves[close]
    head, dot, rest = key.partition(".")
    close = _closest(head, {other.partition(".")[0] for other in known})
    return f"{close}{dot}{rest}" if close and close != head else None


def _misnamed_part(value: str) -> str | None:
    """Find `class_path` or `init_args` written another way."""
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return None
    strange = [str(key) for key in given if key not in _PARTS] if isinstance(given, dict) else []
    return next((close for key in strange if (close := _closest(key, _PARTS))), None)


def _closest_choice(problem: Problem) -> str | None:
    """Find the value meant where a few are allowed."""
    text = " ".join(problem.issues)
    given = problem.value or text.rpartition("Got value: ")[2]
    lists = re.findall(r"Literal\[(.+?)\]", text)
    choices = [choice for part in lists for choice in re.findall(r"'([^']*)'", part)]
    return _closest(given, choices)


def _closest(word: str, known: Any, cutoff: float = 0.75) -> str | None:
    close = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return close[0] if close and close[0] != word else None


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy that is no name Lightning knows, with the one that was meant.

    Raises:
        ValueError: It is an unknown name.
    """
    from lightning.pytorch.strategies import StrategyRegistry

    import lightning_llm.strategies as ours

    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in known:
        close = _closest(strategy, known)
        if strategy in ours.__all__:
            close = f"{ours.__name__}.{strategy}"
        hint = f"did you mean {close!r}?" if close else f"known are {', '.join(known)}."
        raise InvalidValueError(f"trainer.strategy={strategy!r} is unknown; {hint}")
