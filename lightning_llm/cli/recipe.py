"""How a recipe is read: interpolation, resolvers, and which class paths it may name."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# What a recipe may name without being asked. A class path outside is refused before its module
# is imported: importing runs code.
ALLOWED_IMPORTS = ("lightning_llm", "lightning", "torch", "torchmetrics", "transformers")


def register_resolvers() -> None:
    """Make ``${python_stdlib:}`` available: the folder of the Python standard library."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver(
        "python_stdlib", lambda: sysconfig.get_paths()["stdlib"], replace=True
    )


def restrict_imports(extra: Sequence[str]) -> None:
    """Allow class paths of known packages and of those the user names.

    Args:
        extra: Packages or modules given with ``--allow_import``.
    """
    from jsonargparse import set_parsing_settings

    for name in extra:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--allow_import {name!r} is not a module path such as my_package")
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*ALLOWED_IMPORTS, *extra]
    )


def split_allow_import(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take ``--allow_import NAME`` out of the arguments; return ``(names, other arguments)``."""
    names: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--allow_import":
            name = next(rest, None)
            if name is None:
                raise ValueError("--allow_import needs the name of a package")
            names.extend(name.split(","))
        elif argument.startswith("--allow_import="):
            names.extend(argument.partition("=")[2].split(","))
        else:
            others.append(argument)
    return names, others


class RecipeParser(LightningArgumentParser):
    """A parser whose errors are one sentence, with the closest known key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the message and a suggestion to standard error, and exit with status 2."""
        import sys

        sys.stderr.write(f"{self.prog}: error: {message}{self._suggestion(message)}\n")
        raise SystemExit(2)

    def _suggestion(self, message: str) -> str:
        words = [word.strip("'\"`.,:()[]") for word in message.split()]
        known = _known_keys(self)
        for word in words:
            name = word.removeprefix("--").partition("=")[0]
            if len(name) < 3 or name in known:
                continue
            leaf = name.rpartition(".")[2]
            close = get_close_matches(name, known, n=1, cutoff=0.8) if "." in name else []
            if not close:
                leaves = {key.rpartition(".")[2]: key for key in known}
                found = get_close_matches(leaf, leaves, n=1, cutoff=0.85)
                close = [leaves[found[0]]] if found and found[0] != leaf else []
            if close:
                return f"\ndid you mean {close[0]!r}?"
        return ""


def _known_keys(parser: LightningArgumentParser) -> list[str]:
    from dataclasses import fields

    from lightning_llm.models import TransformerConfig

    keys = [action.dest for action in parser._actions if action.dest]
    config: list[Any] = list(fields(TransformerConfig))
    return keys + [f"model.init_args.config.{field.name}" for field in config]
