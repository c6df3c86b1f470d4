"""Validity of Python against `ast` on every beginning of real source, and on hostile text."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from lightning_llm.metrics import SyntaxValidity
from lightning_llm.metrics.syntax import MAX_CHARACTERS, is_valid_python

SOURCE = '''\
"""A module."""
import os

@staticmethod
def f(x, *, y=(1,
               2)):
    """Says
what it does."""
    try:
        with open(x) as file:  # a comment: not a block
            data = {"a": [1, 2],
                    'b': "it's"}
    except (OSError,
            ValueError):
        return None
    finally:
        x = x + \\
            1
    for i in range(3):
        if i:
            continue
        else:
            print(f"{i}", "a # b")
    return x


class A:
    # nothing yet
    x: int = 3
'''
BROKEN = [
    "def f(:\n    pass\n",
    "this is no python\n",
    "x = 1\nfoo bar\n",
    "x = 1\nfoo bar\ny = 2",
    "def f():\n    x = = 1\n    y = (",
    "import os\ndef f():\n    x y\n    z",
    "foo(\nimport os\nx = 1\n",
    "x = (1, 2\ndef f():\n    return 1\n",
    "x = )\n",
    "  indented = 1\nx = 2\n",
    "x = 'abc\ny = 1\n",
    "just an unfinished line",
    "# a comment\nand words",
    "if x:\npass\n",
    "try:\n    x = 1\ny = 2\n",
    "a\x00b",
    "\ud800 = 1",
]
VALID = [
    "",
    "x = 1",
    "x = 1\nfoo bar",  # the end may go on to be anything
    "def f():\n    return (",
    "def f():\n",
    "if x:\n    y = 1\nel",
    "try:\n    y = 1\nexc",
    "try:\n    y = 1\nexcept",
    "for x in y:  # why\n",
    "名 = '春天'\nprint(名",
    'r"\\d" == "\\d"\n',  # an escape that only warns
]


def test_every_beginning_of_real_source_is_valid() -> None:
    ast.parse(SOURCE)
    first = SOURCE.index("import")
    failed = [SOURCE[:n] for n in range(first, len(SOURCE) + 1) if not is_valid_python(SOURCE[:n])]
    assert not failed, failed[0]


def test_every_beginning_of_this_file() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    lengths = range(100, len(source), 37)
    assert [n for n in lengths if not is_valid_python(source[:n])] == []


@pytest.mark.parametrize("text", VALID)
def test_valid(text: str) -> None:
    assert is_valid_python(text)


@pytest.mark.parametrize("text", BROKEN)
def test_broken(text: str) -> None:
    assert not is_valid_python(text)


def test_whole_texts_are_judged_as_ast_does() -> None:
    def parses(text: str) -> bool:
        try:
            ast.parse(text)
        except SyntaxError:
            return False
        return True

    lines = SOURCE.splitlines(keepends=True)
    agree = 0
    for index in range(len(lines)):
        mutilated = "".join(lines[:index] + lines[index + 1 :]) + "done = 1\n"
        if parses(mutilated):
            assert is_valid_python(mutilated)
            agree += 1
        elif not any(quote in lines[index] for quote in ('"""', "(", "[", "{", ")", "\\")):
            assert not is_valid_python(mutilated), mutilated
            agree += 1
    assert agree > 15


@pytest.mark.parametrize(
    "text",
    [
        "(" * 50_000,
        "-" * 90_000 + "1",
        "not " * 20_000 + "x",
        "a" + ".b" * 40_000,
        "1" + "+1" * 40_000,
        "".join(" " * i + "if x:\n" for i in range(300)),
        '"""' * 30_001,
        "\\\n" * 40_000,
        "x = " + "9" * 20_000,
        "{" + "[" * 199,
        "x = 1\n" * MAX_CHARACTERS,
    ],
)
def test_hostile_texts_end_in_an_answer(text: str) -> None:
    assert is_valid_python(text) in (True, False)


def test_nothing_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "written"
    code = textwrap.dedent(f"""
        open({str(target)!r}, "w")
        raise SystemExit
    """)
    assert is_valid_python(code)
    assert not target.exists()


def test_sums_over_batches() -> None:
    validity = SyntaxValidity()
    validity.update([])
    assert validity.compute().isnan()
    validity.reset()
    validity.update(["x = 1\n", "def f(:\n"])
    validity.update(["y", "z"])
    assert validity.compute() == 75
    with pytest.raises(TypeError, match="list of strings"):
        validity.update("x = 1")
