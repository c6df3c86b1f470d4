"""The documentation tells the truth: its code runs, its commands exist, its reference is whole."""

from __future__ import annotations

import importlib
import random
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CODE_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Yield line number and content of the page's code blocks in a language."""
    text = page.read_text(encoding="utf-8")
    for found in CODE_BLOCK.finditer(text):
        if found[1] == language:
            yield text.count("\n", 0, found.start(2)), found[2]


@pytest.fixture
def folder_with_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = re.findall(r"\w+", "of all the light in which no one had ever seen so bright a morning")
    (tmp_path / "books").mkdir()
    draw = random.Random(0)
    for name in ("one", "two"):
        text = " ".join(draw.choices(words, k=4000))
        (tmp_path / "books" / f"{name}.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(blocks(page, "python"))], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs(page: Path, folder_with_books: Path) -> None:
    namespace: dict[str, Any] = {"__name__": page.stem}
    for line, code in blocks(page, "python"):
        if code.startswith('--8<-- "'):
            continue  # from a file that has tests of its own: tests/examples/test_snippets.py
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    from lightning_llm.cli import COMMANDS

    for _, block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "lightning-llm":
                continue
            assert words[1] in COMMANDS, line
            for flag, value in pairwise(words):
                if flag == "--config":
                    assert (ROOT / value).is_file(), f"{line}: no {value}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert not [page for page in pages if f": {page}\n" not in navigation]


PARTS = sorted(
    folder.name
    for folder in (ROOT / "lightning_llm").iterdir()
    if (folder / "__init__.py").is_file() and folder.name not in ("cli", "interop", "runtime")
)
REFERENCE = {
    "lightning_llm": "module",
    "lightning_llm.interop.hf": "hugging-face",
    **{f"lightning_llm.{part}": part for part in PARTS},
}


@pytest.mark.parametrize(("module", "page"), REFERENCE.items(), ids=REFERENCE.values())
def test_the_reference_has_every_public_name(module: str, page: str) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    documented = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith("::: ")}
    public = set(importlib.import_module(module).__all__) - {"__version__"}
    assert documented == public, f"docs/reference/{page}.md lists each public name with a ':::'"


def test_every_field_of_the_model_is_explained() -> None:
    from dataclasses import fields

    from lightning_llm.models import TransformerConfig

    text = (DOCS / "models.md").read_text(encoding="utf-8")
    missing = [field.name for field in fields(TransformerConfig) if f"`{field.name}`" not in text]
    assert not missing


def test_every_recipe_is_listed() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    recipes = [str(file.relative_to(ROOT)) for file in (ROOT / "recipes").rglob("*.yaml")]
    assert not [recipe for recipe in recipes if f"`{recipe}`" not in text]
