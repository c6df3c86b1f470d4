"""How a recipe is read: interpolation, resolvers, and which class paths it may name."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# What a recipe may name without being asked. A class path outside is refused before its module
# is imported: importing runs code.
ALLOWED_IMPORTS = ("lightning_llm", "lightning", "torch", "torchmetrics", "transformers")


def register_resolvers() -> None:
    """Make the resolvers of the recipes available.

    ``${python_stdlib:}`` is the folder of the Python standard library;
    ``${fast_precision:}`` is ``bf16-mixed`` where the hardware multiplies bfloat16, else
    ``32-true``.
    """
    from omegaconf import OmegaConf

    # The name since omegaconf 2.4; before it, the second.
    register: Callable[..., None] = getattr(OmegaConf, "register_resolver", None) or (
        OmegaConf.register_new_resolver
    )
    register("python_stdlib", lambda: sysconfig.get_paths()["stdlib"], replace=True)
    register("fast_precision", _fast_precision, replace=True)


def _fast_precision() -> str:
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif torch.backends.mps.is_available():
        fast = False
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


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
    """A parser whose errors are short, with the closest known key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the message and a suggestion to standard error, and exit with status 2."""
        message = _innermost_problem(message).replace(
            "Add the import path to import_path_allowlist in set_parsing_settings to allow it.",
            "If you trust it, allow it with --allow_import PACKAGE.",
        )
        sys.stderr.write(f"{self.prog}: error: {message}{self._suggestion(message)}\n")
        raise SystemExit(2)

    def _suggestion(self, message: str) -> str:
        known = _known_keys(self)
        leaves = {key.rpartition(".")[2]: key for key in known}
        for word in message.replace("=", " ").split():
            leaf = word.strip("'\"`.,:()[]").removeprefix("--").rpartition(".")[2]
            if len(leaf) < 3 or leaf in leaves:
                continue
            close = get_close_matches(leaf, leaves, n=1, cutoff=0.8)
            if close:
                return f"\ndid you mean {leaves[close[0]]!r}?"
        return ""


def _innermost_problem(message: str) -> str:
    """Cut jsonargparse's report on every alternative of a type down to the one that was meant."""
    lines = message.splitlines()
    start = next((i for i, line in enumerate(lines) if "Problem with given class_path" in line), -1)
    if start < 0:
        return message
    indent = len(lines[start]) - len(lines[start].lstrip())
    kept = [lines[start].strip(" -").replace("Problem with given class_path", "class_path")]
    for line in lines[start + 1 :]:
        if len(line) - len(line.lstrip()) <= indent:
            break
        kept.append("  " + line.strip())
    return "\n".join(kept)


def _known_keys(parser: LightningArgumentParser) -> list[str]:
    from dataclasses import fields

    from lightning_llm.models import TransformerConfig

    keys = [action.dest for action in parser._actions if action.dest]
    config: list[Any] = list(fields(TransformerConfig))
    return keys + [f"model.init_args.config.{field.name}" for field in config]
