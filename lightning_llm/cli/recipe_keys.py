"""Which keys a recipe may have, and which parameters the classes in it take."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

# Modules whose classes a recipe may name without their path.
_CLASS_MODULES = (
    "lightning_llm",
    "lightning_llm.data",
    "lightning_llm.callbacks",
    "lightning_llm.strategies",
    "lightning_llm.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
)
# The classes whose keys are offered before a recipe says which it names.
_MODEL, _DATA = "lightning_llm.CausalLM", "lightning_llm.TextDataModule"


def recipe_keys(parser: Any) -> list[str]:
    """Return the keys of a parser, and those of the usual model and data below it."""
    keys = [action.dest for action in parser._actions if action.dest]
    for group, class_path in (("model", _MODEL), ("data", _DATA)):
        if group in keys:
            keys += [f"{group}.init_args.{key}" for key in nested_keys(class_path)]
    return keys


@cache
def nested_keys(class_path: str) -> tuple[str, ...]:
    """Return the parameters of a class, and behind each that is a data class its fields."""
    keys = []
    for name in parameters_of(class_path):
        keys.append(name)
        keys += [f"{name}.{field}" for field in fields_at(class_path, name)]
    return tuple(keys)


def parameters_of(class_path: str) -> list[str]:
    """Return the names a class or classmethod takes, those that it passes on included."""
    found = _object(class_path)
    if found is None:
        return []
    names: dict[str, None] = {}
    if inspect.isclass(found):
        owners = inspect.getmro(found)
    else:
        made = getattr(found, "__self__", None)
        owners = (found, *(inspect.getmro(made) if inspect.isclass(made) else ()))
    for owner in owners:
        takes = inspect.signature(owner.__init__ if inspect.isclass(owner) else owner).parameters
        names |= dict.fromkeys(name for name in takes if name not in ("self", "args", "kwargs"))
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in takes.values()):
            break
    return list(names)


def fields_at(class_path: str, key: str) -> list[str]:
    """Return the fields of the data class at a parameter, such as ``config`` or ``a.b``."""
    found: Any = _object(class_path)
    for part in key.split("."):
        if found is None:
            return []
        try:
            hints = get_type_hints(found if is_dataclass(found) else found.__init__)
        except (NameError, TypeError):  # written for a type checker alone
            return []
        kinds = [hints.get(part), *get_args(hints.get(part))]
        found = next((kind for kind in kinds if is_dataclass(kind)), None)
    return [] if found is None else [field.name for field in fields(found)]


def public_names(module: str) -> list[str]:
    """Return the public names of a module that is loaded."""
    loaded = sys.modules.get(module)
    if loaded is None:
        return []
    prefix = f"{module}."
    inside = [name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)]
    names = [*dir(loaded), *(name for name in inside if "." not in name)]
    return [name for name in names if not name.startswith("_")]


def class_names() -> list[str]:
    """Return the classes that a recipe may name without their path."""
    modules = [importlib.import_module(name) for name in _CLASS_MODULES]
    return [name for module in modules for name in module.__all__ if name[0].isupper()]


def _object(class_path: str) -> Any:
    """Return a class of a loaded module, or a method of one; None if there is none.

    Nothing is imported for this.
    """
    module, _, name = class_path.rpartition(".")
    owner = sys.modules.get(module) or (_object(module) if module else None)
    return getattr(owner, name, None)
