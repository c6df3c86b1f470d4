"""Every name of the package that documentation, examples and recipes write down exists."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest

import lightning_llm

ROOT = Path(__file__).parents[1]
PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "recipes/**/*.yaml",
    "examples/*.py",
    "examples/*.ipynb",
)
FILES = sorted(
    file
    for pattern in PATTERNS
    for file in ROOT.glob(pattern)
    if file.name != "CHANGELOG.md"  # may tell of what is gone
)
DOTTED = re.compile(r"(?<![\w./-])lightning_llm(?:\.[A-Za-z_]\w*)+")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?(lightning_llm[\w.]*)`")
IMPORTED = re.compile(
    r"^ *from (lightning_llm[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))", re.MULTILINE
)


def text_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def imports_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of each ``from ... import`` of the package."""
    for module, wrapped, plain in IMPORTED.findall(text):
        for name in re.findall(r"\w+", re.sub(r"#.*|\bas \w+", "", wrapped or plain)):
            yield module, name


@cache
def resolve(name: str) -> Any:
    """Return what a dotted name means: a module as deep as there is one, then attributes.

    Raises:
        AttributeError: Nothing has this name.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("lightning_llm"):
                raise
            continue
        return reduce(getattr, parts[end:], module)
    raise AttributeError(name)


def exists(name: str) -> bool:
    try:
        resolve(name)
    except AttributeError:
        return False
    return True


def public_packages() -> Iterator[str]:
    """Yield the packages that list their public names."""
    yield "lightning_llm"
    for found in pkgutil.walk_packages(lightning_llm.__path__, "lightning_llm."):
        if found.ispkg and hasattr(importlib.import_module(found.name), "__all__"):
            yield found.name


PUBLIC = list(public_packages())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_of_the_package_exists(file: Path) -> None:
    text = text_of(file)
    written = set(DOTTED.findall(text)) | {".".join(found) for found in imports_in(text)}
    assert not sorted(name for name in written if not exists(name))


def test_every_name_that_a_docstring_refers_to_exists() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / "lightning_llm").rglob("*.py")
        for name in ROLE.findall(file.read_text(encoding="utf-8"))
        if not exists(name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_of_public_names(file: Path) -> None:
    private = [
        f"from {module} import {name}"
        for module, name in imports_in(text_of(file))
        if module not in PUBLIC or name not in resolve(module).__all__
    ]
    assert not private, "show what the package lists in __all__, or list it there"


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    pages = (page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    entries = [entry for page in pages for entry in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    shown = {id(resolve(entry)) for entry in entries}
    module = resolve(package)
    public = [name for name in module.__all__ if name != "__version__"]
    assert not [name for name in public if id(getattr(module, name)) not in shown]


def test_what_does_not_exist_is_found() -> None:
    text = "See `lightning_llm.data.TokenStores`.\nfrom lightning_llm.optim import (\n  AdamV,\n)\n"
    assert [name for name in DOTTED.findall(text) if not exists(name)] == [
        "lightning_llm.data.TokenStores"
    ]
    assert list(imports_in(text)) == [("lightning_llm.optim", "AdamV")]
    assert not exists("lightning_llm.optim.AdamV")
    assert not exists("lightning_llm.optims.AdamW")
    assert exists("lightning_llm.generation.generate.generate")  # a module beside a function
