"""The Chinese pages say what the English ones say: same headings in number and depth, same code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAIRS = [
    ("README.md", "README.zh.md"),
    ("docs/quickstart.md", "docs/zh/quickstart.md"),
    ("docs/concepts.md", "docs/zh/concepts.md"),
    ("docs/speed.md", "docs/zh/speed.md"),
]
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_headings_and_code_are_in_step(english: str, chinese: str) -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in (english, chinese)]
    code = [CODE.findall(text) for text in texts]
    assert code[0] == code[1]
    depths = [re.findall(r"^#+(?= )", CODE.sub("", text), re.MULTILINE) for text in texts]
    assert depths[0] == depths[1]
    tables = [len(re.findall(r"^\|(?::?-)", text, re.MULTILINE)) for text in texts]
    assert tables[1] in (tables[0], tables[0] - 1)  # the README's recipes are linked, not repeated


@pytest.mark.parametrize("chinese", [chinese for _, chinese in PAIRS])
def test_it_is_chinese(chinese: str) -> None:
    text = CODE.sub("", (ROOT / chinese).read_text(encoding="utf-8"))
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 200
