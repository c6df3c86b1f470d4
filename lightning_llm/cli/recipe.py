"""How a recipe is read: interpolation, resolvers, and which class paths it may name."""

from __future__ import annotations

import inspect
import re
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_llm.cli.parse_errors import ALLOWED_IMPORTS, ShortErrors
from lightning_llm.cli.recipe_kinds import guard_resolution, trust
from lightning_llm.errors import InvalidValueError

# What earlier commands of this process allowed: jsonargparse's settings only ever grow.
_ALLOWED_BEFORE: set[str] = set()


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
    """Allow class paths of known packages and of those the user names, and no others.

    Of the known packages a recipe may name classes that a run is made of, see `recipe_kinds`.

    Args:
        extra: Packages or modules given with ``--allow_import``.
    """
    from jsonargparse import set_parsing_settings

    for name in extra:
        if not all(part.isidentifier() for part in name.split(".")):
            raise InvalidValueError(
                f"--allow_import {name!r} is not a module path such as my_package"
            )
    allowed = [*ALLOWED_IMPORTS, *extra]
    prefixes = tuple(f"{name}." for name in allowed)
    withdrawn = [name for name in _ALLOWED_BEFORE if not f"{name}.".startswith(prefixes)]
    _ALLOWED_BEFORE.update(extra)
    trust(extra)
    guard_resolution()
    set_parsing_settings(import_path_denylist=["*", *withdrawn], import_path_allowlist=allowed)


def split_allow_import(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take ``--allow_import NAME`` out of the arguments; return ``(names, other arguments)``."""
    names: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--allow_import":
            name = next(rest, None)
            if name is None:
                raise InvalidValueError("--allow_import needs the name of a package")
            names.extend(name.split(","))
        elif argument.startswith("--allow_import="):
            names.extend(argument.partition("=")[2].split(","))
        else:
            others.append(argument)
    return names, others


class RecipeParser(ShortErrors, LightningArgumentParser):
    """The parser of a recipe."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Any:
        """Let ``null`` on the command line be null at any depth.

        jsonargparse hands a key inside a class to the parser of that class as text again, and
        writes null as Python does, which YAML reads as a string.
        """
        if args is not None:
            args = [re.sub("=None$", "=null", argument) for argument in args]
        return super().parse_args(args, *rest, **options)

    def add_function_arguments(
        self, function: Callable[..., Any], *args: Any, linked_targets: Any = None, **kwargs: Any
    ) -> list[str]:
        """Let a class path be a classmethod, such as ``lightning_llm.CausalLM.from_pretrained``.

        jsonargparse hands on what concerns links, of which only classes make use, and does not
        look through ``cls(**options)`` unless it knows the class.
        """
        owner = getattr(function, "__self__", None)
        if inspect.isclass(owner):
            return self.add_method_arguments(owner, function.__name__, *args, **kwargs)
        return super().add_function_arguments(function, *args, **kwargs)
