"""A file that trains and validates is told: the scores would be of text that was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_llm.data import QADataModule, TextDataModule, TokenizerSpec, TranslationDataModule


@pytest.mark.parametrize("kind", [TextDataModule, QADataModule])
def test_files_of_two_parts_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[Any]
) -> None:
    for name in ("a", "b", "val", "test"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    options = {"tokenizer": {"algorithm": "byte"}, "seq_len": 8, "micro_batch_size": 1}
    apart = {"train_files": [tmp_path / "a.jsonl"], "val_files": [tmp_path / "val.jsonl"]}
    kind(**options, **apart)
    assert not caplog.records
    everything = {**apart, "train_files": [f"{tmp_path}/*.jsonl"]}
    kind(**options, **everything, test_files=[tmp_path / "test.jsonl", tmp_path / "b.jsonl"])
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "val.jsonl train and are the val part too" in told[0]
    assert "and 1 more" in told[1]
    assert "the test part" in told[1]


def test_aligned_files_of_two_parts_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.en", "a.de"):
        (tmp_path / name).write_text("x\n")
    source, target = tmp_path / "a.en", tmp_path / "a.de"
    TranslationDataModule(
        train_source=source,
        train_target=target,
        val_source=source,
        val_target=target,
        tokenizer=TokenizerSpec("byte"),
        seq_len=8,
        micro_batch_size=1,
    )
    assert "a.en train and are the val part too" in caplog.text
