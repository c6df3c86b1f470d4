"""Questions on a context: prompts, answers and the layouts they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_batches import SMALL, targets_as_text, write_lines

from lightning_llm.data import QADataModule

CONTEXT = "Lisbon is the capital of Portugal. 里斯本是葡萄牙的首都。"
ROW = {"context": CONTEXT, "question": "What is the capital of {context}?"}
ANSWERS = ["Lisbon", "里斯本", "Lisbon"]
EOS = "<|endoftext|>"


def module(tmp_path: Path, *rows: Any, **options: Any) -> QADataModule:
    files = write_lines(tmp_path / "qa.jsonl", [json.dumps(row) for row in rows])
    defaults: dict[str, Any] = {"tokenizer": SMALL, "seq_len": 256, "micro_batch_size": 1}
    defaults |= {"train_files": files, "val_files": files, "cache_dir": tmp_path / "cache"}
    return QADataModule(**(defaults | options))


def test_the_first_answer_is_learned_and_all_are_references(tmp_path: Path) -> None:
    data = module(tmp_path, {**ROW, "answers": ANSWERS}, {**ROW, "answers": "Lisboa"})
    texts = targets_as_text(data.tokenizer, data.train_dataloader())
    assert sorted(texts) == [f"Lisboa{EOS}", f"Lisbon{EOS}"]
    batches = list(data.val_dataloader())
    prompt = f"{CONTEXT}\n\nQuestion: {ROW['question']}\nAnswer:\n"
    assert [text for batch in batches for text in batch["prompts"]] == [prompt, prompt]
    references = [answers for batch in batches for answers in batch["references"]]
    assert references == [["Lisbon", "里斯本"], ["Lisboa"]]


def test_answers_in_squads_layouts(tmp_path: Path) -> None:
    answers = {"text": ["Lisbon", "里斯本"], "answer_start": [0, 35]}
    paragraph = {
        "context": CONTEXT,
        "qas": [{"id": "7", "question": "What?", "answers": [{"text": "Lisbon"}]}],
    }
    squad = tmp_path / "squad.json"
    squad.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    data = module(tmp_path, {**ROW, "answers": answers}, val_files=squad)
    assert targets_as_text(data.tokenizer, data.train_dataloader()) == [f"Lisbon{EOS}"]
    assert next(iter(data.val_dataloader()))["references"] == [["Lisbon"]]
    squad.write_text("[]")
    with pytest.raises(ValueError, match=r"squad.json: not a SQuAD file"):
        module(tmp_path, ROW | {"answers": "a"}, train_files=squad).prepare_data()


def test_questions_without_an_answer(tmp_path: Path) -> None:
    row = {**ROW, "answers": {"text": []}}
    with pytest.raises(ValueError, match=r"qa.jsonl:1: no answer. Give no_answer"):
        module(tmp_path, row).prepare_data()
    data = module(tmp_path, row, no_answer="unknown")
    assert targets_as_text(data.tokenizer, data.train_dataloader()) == [f"unknown{EOS}"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"context": ""}, "context: expected a text, got ''"),
        ({"question": None}, "question: expected a text, got None"),
        ({"answers": [1]}, r"answers: expected a text, a list of texts or .*got \[1\]"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, change: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=f"qa.jsonl:1: {problem}"):
        module(tmp_path, {**ROW, "answers": "a"} | change).prepare_data()


def test_the_template_has_both_fields(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must contain {question} once"):
        module(tmp_path, ROW, template="{context}")
