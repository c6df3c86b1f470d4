"""Files of documents for the tests of sources."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import zstandard

from lightning_llm.data.sources import read_documents

HARD = "\ufeff first\r\nNUL \0, U+2028 \u2028, NEL \x85, VT \x0b, 中文, 😀, e\u0301\r\rlast \ufeff"


def texts(path: Path, **options: object) -> list[str]:
    return ["".join(document.pieces) for document in read_documents(path, **options)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def random_text(generator: random.Random, size: int) -> str:
    """Text whose line ends, spaces and wide characters come in stretches of any length."""
    parts = []
    while size > 0:
        count = generator.choice([1, 3, 50, 700])
        parts.append(
            generator.choice(["\n", " ", "a", "\r\n", "中", "😀", "\0", "word ", "é"]) * count
        )
        size -= count
    return "".join(parts)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}
