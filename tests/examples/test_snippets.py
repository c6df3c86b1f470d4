"""Code in the documentation is included from tested files, compared with them, or executed."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import reduce
from pathlib import Path
from textwrap import dedent
from typing import Any

import lightning.pytorch as L
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r'^ *--8<-- "([^":]+)(?::([\w-]+))?"$', re.MULTILINE)
MARK = re.compile(r"--8<-- \[(start|end):([\w-]+)\]")
# Lines of the package, under a caption that says where they stand: "`Class.method` in `file`:"
QUOTE = re.compile(r"^`([\w.]+)` in `(lightning_llm/[\w/]+)\.py`:\n\n```py\n(.*?)^```", re.M | re.S)


def python_blocks(page: Path) -> list[str]:
    """Return the page's blocks of Python, also of those within tabs and lists."""
    text = page.read_text(encoding="utf-8")
    return [
        dedent(code) for _, language, code in FENCE.findall(text) if language in ("python", "py")
    ]


def section(file: Path, name: str) -> str:
    """Return the lines between the marks of a section."""
    text = file.read_text(encoding="utf-8")
    start, end = (re.search(rf".*--8<-- \[{mark}:{name}\].*\n", text) for mark in ("start", "end"))
    assert start is not None, f"{file.name} has no section {name}"
    assert end is not None, f"the section {name} of {file.name} does not end"
    return dedent(text[start.end() : end.start()]).strip("\n")


def includes() -> list[tuple[Path, str, str]]:
    """Return page, file and section of each include."""
    return [
        (page, file, name)
        for page in PAGES
        for file, name in INCLUDE.findall(page.read_text(encoding="utf-8"))
    ]


def test_what_is_included_is_tested() -> None:
    for page, file, name in includes():
        assert (ROOT / file).is_file(), f"{page.name}: no {file}"
        if name:
            assert section(ROOT / file, name), f"{page.name}: {file}:{name} is empty"
        tested = (ROOT / file).parent == EXAMPLES or file in ("README.md", "CHANGELOG.md")
        assert tested or file == "CONTRIBUTING.md", f"{page.name}: nothing tests {file}"


def test_every_section_is_shown_somewhere() -> None:
    shown = {(file, name) for _, file, name in includes()}
    marked = {
        (f"examples/{script.name}", name)
        for script in EXAMPLES.glob("*.py")
        for _, name in MARK.findall(script.read_text(encoding="utf-8"))
    }
    assert marked <= shown, f"sections that no page includes: {sorted(marked - shown)}"


def test_blocks_are_whole_includes_or_stand_where_the_tests_execute_them() -> None:
    """Of docs/*.md, blocks that start their line are executed; see tests/test_docs.py."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for indent, language, code in FENCE.findall(text):
            if language not in ("python", "py"):
                continue
            lines = [line for line in code.splitlines() if line.strip()]
            included = [bool(INCLUDE.fullmatch(line)) for line in lines]
            assert all(included) or not any(included), f"{page.name}: mixed with an include: {code}"
            executed = not indent and language == "python" and page.parent == ROOT / "docs"
            compared = not indent and code in (lines for _, _, lines in QUOTE.findall(text))
            tested = all(included) or executed or compared
            assert tested, f"{page.name}: nothing runs or compares this: {code}"


def source_of(symbol: str, module: str) -> list[str]:
    """Return the lines of a function or class of the package, without their indentation."""
    found = importlib.import_module(module.replace("/", "."))
    source = inspect.getsource(reduce(getattr, symbol.split("."), found))
    return [line.strip() for line in source.splitlines()]


def missing_lines(quoted: str, source: list[str]) -> str | None:
    """Return what of a quotation does not follow in the source; a line ``...`` skips some."""
    start = 0
    for passage in re.split(r"^ *\.\.\.\n", quoted, flags=re.MULTILINE):
        lines = [line.strip() for line in passage.splitlines()]
        places = range(start, len(source) - len(lines) + 1)
        place = next((i for i in places if source[i : i + len(lines)] == lines), None)
        if place is None or not any(lines):
            return passage
        start = place + len(lines)
    return None


QUOTATIONS = [
    pytest.param(*found, id=f"{page.stem}-{found[0]}")
    for page in PAGES
    for found in QUOTE.findall(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("symbol", "module", "quoted"), QUOTATIONS)
def test_quoted_lines_are_those_of_the_package(symbol: str, module: str, quoted: str) -> None:
    missing = missing_lines(quoted, source_of(symbol, module))
    assert missing is None, f"{module}.py, {symbol} has no longer, in this order:\n{missing}"


@pytest.mark.parametrize(
    ("quoted", "missing"),
    [
        ("a = 1\nb = 2\n", None),
        ("    a = 1\n    b = 2\n", None),
        ("a = 1\n...\nreturn c\n", None),
        ("a = 2\n", "a = 2\n"),
        ("a = 1\nreturn c\n", "a = 1\nreturn c\n"),
        ("return c\n...\na = 1\n", "a = 1\n"),
        ("a = 1\n...\na = 1\n", "a = 1\n"),
        ("a = 1\n...\n", ""),
    ],
)
def test_a_wrong_quotation_is_found(quoted: str, missing: str | None) -> None:
    source = ["def f():", "a = 1", "b = 2", "c = a + b", "return c"]
    assert missing_lines(quoted, source) == missing


def test_how_it_works_has_code_and_source_for_each_formula() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    explained = [part for part in re.split(r"^##+ ", text, flags=re.MULTILINE) if "\n$$\n" in part]
    titles = {part.partition("\n")[0] for part in explained}
    assert titles >= {"Attention", "Rotary", "The loss", "Perplexity", "BLEU"}
    for part in explained:
        assert QUOTE.search(part), f"no line of code: {part}"
        assert "](https://" in part, f"no source: {part}"
    for shown, linked in re.findall(r"\[arXiv:([^]]+)\]\(([^)]+)\)", text):
        assert re.fullmatch(r"\d{4}\.\d{4,5}", shown), shown
        assert linked == f"https://arxiv.org/abs/{shown}"


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_the_readme_shows_the_tested_subclass(readme: Path) -> None:
    assert python_blocks(readme)[-1].strip() == section(EXAMPLES / "own_optimizer.py", "groups")


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its Python in one go, with one step where it takes 200."""

    class ShortTrainer(L.Trainer):
        def __init__(self, **options: Any) -> None:
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            super().__init__(**{**options, **quiet, "max_steps": 1, "accelerator": "cpu"})

    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("so bright a morning had no one seen " * 1200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(L, "Trainer", ShortTrainer)
    foreign: dict[str, Any] = {"__name__": "callbacks_in_a_foreign_project"}
    source = EXAMPLES / "callbacks_in_a_foreign_project.py"
    exec(compile(source.read_text(encoding="utf-8"), str(source), "exec"), foreign)
    namespace: dict[str, Any] = {
        "__name__": "readme",
        "your_module": foreign["TheirModule"](),
        "your_loaders": foreign["loader"]([source], batch_size=2),
    }
    for code in python_blocks(ROOT / "README.md"):
        exec(compile(code, "README.md", "exec"), namespace)
    assert (tmp_path / "my_model" / "model.safetensors").is_file()
    groups = namespace["TwoRates"](namespace["model"].config).configure_optimizers().param_groups
    assert len({group["lr"] for group in groups}) == 2
