"""Mutated files: the same text, or an error that names the file; never another outcome."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_llm.cli.recipe_text import check_recipe_text
from lightning_llm.data.sources import read_documents

TEXTS = ["first document\n", "zweites, mit Umlaut: ä\n", "第三\n", "x" * 300]


def _jsonl() -> bytes:
    return "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS).encode()


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), buffer)
    return buffer.getvalue()


@cache
def whole(name: str) -> bytes:
    return {
        "a.txt": lambda: "".join(TEXTS).encode(),
        "a.jsonl": _jsonl,
        "a.jsonl.gz": lambda: gzip.compress(_jsonl(), mtime=0),
        "a.jsonl.zst": lambda: zstandard.ZstdCompressor(write_checksum=True).compress(_jsonl()),
        "a.parquet": _parquet,
    }[name]()


def read(name: str, content: bytes, errors: str = "strict") -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return ["".join(document.pieces) for document in read_documents(path, errors=errors)]
        except ValueError as error:
            assert name in str(error), error
            raise


@st.composite
def mutation(draw, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        if not changed:
            break
        place = draw(st.integers(0, len(changed) - 1))
        kind = draw(st.sampled_from(["flip", "cut", "delete", "insert", "repeat"]))
        if kind == "flip":
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[place:]
        elif kind == "delete":
            del changed[place : place + draw(st.integers(1, 20))]
        elif kind == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            changed[place:place] = changed[place : place + 20]
    return bytes(changed)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
@settings(max_examples=40)
@given(st.data())
def test_any_damage_is_text_or_an_error_with_the_name(name, errors, data):
    content = data.draw(mutation(whole(name)))
    try:
        texts = read(name, content, errors)
    except ValueError:
        return
    assert all(isinstance(text, str) and text for text in texts)
    if name.endswith((".gz", ".zst")):
        # These formats carry checksums: what is read is what was written, or more of the kind.
        intact = read(name.rpartition(".")[0], _jsonl())
        assert texts[: len(intact)] == intact or not texts or texts == intact[: len(texts)]


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(text):
    """No crash and no other error, whatever somebody calls a recipe."""
    import yaml

    try:
        check_recipe_text(text)
    except (yaml.YAMLError, ValueError):
        return
    if "!" not in text:
        yaml.safe_load(text)
