"""The recipes that come with the package: listed, written out, and found without a path."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten

from lightning_llm.errors import MissingFileError

_PREFIX = "recipes"


def recipes_folder(package: Path) -> Path:
    """Return the folder of the recipes, given that of the package.

    In a clone it lies beside the package, which holds a link to it. Where git writes links as text
    files, as on Windows (``core.symlinks=false``), only the former is a folder.
    """
    inside, beside = package / _PREFIX, package.parent / _PREFIX
    return beside if not inside.is_dir() and beside.is_dir() else inside


FOLDER = recipes_folder(Path(__file__).resolve().parents[1])


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes by name, such as ``pretrain/gpt2_124m``."""
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in files}


def use_shipped(arguments: Sequence[str]) -> list[str]:
    """Let ``--config recipes/NAME.yaml`` mean the shipped recipe where no such file lies here."""
    replaced = list(arguments)
    for place, argument in enumerate(replaced):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-c"):
            continue
        if equals:
            replaced[place] = f"{flag}={_found(value)}"
        elif place + 1 < len(replaced):
            replaced[place + 1] = _found(replaced[place + 1])
    return replaced


def _found(given: str) -> str:
    path = Path(given)
    shipped = FOLDER.joinpath(*path.parts[1:])
    if path.exists() or path.parts[:1] != (_PREFIX,) or not shipped.is_file():
        return given
    sys.stderr.write(f"{given}: not in this folder, so the one of the package: {shipped}\n")
    return str(shipped)


def shipped_close_to(path: str) -> str | None:
    """Return the ``recipes/NAME.yaml`` that a path which leads nowhere may have meant."""
    name = Path(path).name.removesuffix(".yaml")
    by_end = {known.rpartition("/")[2]: known for known in shipped_recipes()}
    close = get_close_matches(name, by_end, n=1, cutoff=0.75)
    return f"{_PREFIX}/{by_end[close[0]]}.yaml" if close else None


def run_recipes(arguments: Sequence[str]) -> int:
    """List the recipes, or write those named to standard output."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="lightning-llm recipes",
        description="List the recipes of the package, or write one to standard output: "
        "lightning-llm recipes quickstart > mine.yaml",
    )
    parser.add_argument("name", nargs="?", help="Such as quickstart or pretrain/gpt2_124m.")
    name = parser.parse_args(list(arguments)).name
    recipes = shipped_recipes()
    if not recipes:
        raise MissingFileError(f"no recipes in {FOLDER}: install the package again.")
    if name is None:
        width = max(map(len, recipes))
        lines = [f"{known:<{width}}  {_summary(path)}\n" for known, path in recipes.items()]
        sys.stdout.write("".join(lines))
        return 0
    known = name.removeprefix(f"{_PREFIX}/").removesuffix(".yaml")
    if known not in recipes:
        close = get_close_matches(known, recipes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see `lightning-llm recipes`."
        raise MissingFileError(f"no recipe {name!r} comes with the package; {hint}")
    sys.stdout.write(recipes[known].read_text(encoding="utf-8"))
    return 0


def _summary(path: Path) -> str:
    """Return the first sentence of the comment that a recipe starts with, in one line."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = re.sub(r" \([^)]*\)", "", " ".join(comment))
    stops = [place for stop in (": ", "; ", ". ") if (place := text.find(stop, 30)) > 0]
    return shorten(text[: min(stops, default=len(text))].rstrip("."), 110, placeholder=" …")
