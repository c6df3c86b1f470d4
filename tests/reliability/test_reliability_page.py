"""Every row of the page names tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "| Test |" not in line]
    assert len(rows) > 35
    for row in rows:
        names = re.findall(r"`([\w/.]*)::(\w+)`", row.rpartition(" | ")[2])
        assert names, row
        file = ""
        for given, test in names:
            file = given or file
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {test}(" in source, f"{file} has no {test}"
