"""Exact match and F1 from generated answers, alone in somebody else's project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from foreign import loader
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import AnswerMonitor

ROWS = [
    {"prompt": "capital of Portugal?", "references": ["Lisbon", "the city of Lisbon"]},
    {"prompt": "2 + 2?", "references": ["four"]},
    {"prompt": "葡萄牙的首都?", "references": ["里斯本"]},
]
ANSWERS = dict(zip([row["prompt"] for row in ROWS], [" The city of Lisbon.", "five", "里斯本市"]))


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: [row[name[:-1] if name == "prompts" else name] for row in rows]
        for name in ("prompts", "references")
    }


class Answerer(L.LightningModule):
    def __init__(self, returns_predictions: bool = False) -> None:
        super().__init__()
        self.returns_predictions = returns_predictions
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.returns_predictions:
            return None
        return {"predictions": self.generate(batch["prompts"])}

    def generate(self, prompts: list[str], max_new_tokens: int = 4) -> list[str]:
        assert max_new_tokens == 32
        return [ANSWERS[prompt] for prompt in prompts]


@pytest.mark.parametrize("tokenize", ["space", "zh"])
def test_scores_of_generated_answers(tmp_path: Path, tokenize: Any) -> None:
    trainer = L.Trainer(
        callbacks=[AnswerMonitor(tokenize)],
        logger=CSVLogger(tmp_path, name="log"),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = loader(ROWS, 2, collate_fn=collate)
    (scores,) = trainer.validate(Answerer(), rows, verbose=False)
    assert scores["val_exact_match"] == pytest.approx(100 / 3)
    partial = 2 * 3 / (3 + 4) if tokenize == "zh" else 0
    assert scores["val_f1"] == pytest.approx((100 + 100 * partial) / 3)
    (path,) = tmp_path.rglob("answer_samples.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert samples[0]["reference"] == "Lisbon | the city of Lisbon"
    assert samples[2]["output"] == "里斯本市"


def test_predictions_of_the_step() -> None:
    trainer = L.Trainer(
        callbacks=[AnswerMonitor(generate_fn=lambda module, prompts: ["no"] * len(prompts))],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Answerer(returns_predictions=True)
    module.generate = lambda prompts: [ANSWERS[prompt] for prompt in prompts]  # type: ignore[method-assign, assignment]
    (scores,) = trainer.validate(module, loader(ROWS, 2, collate_fn=collate), verbose=False)
    assert scores["val_exact_match"] == pytest.approx(100 / 3)


def test_errors_name_the_callback() -> None:
    with pytest.raises(ValueError, match="AnswerMonitor: num_beams=0 must be at least 1"):
        AnswerMonitor(num_beams=0)
    trainer = L.Trainer(
        callbacks=[AnswerMonitor()],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = loader(ROWS, 2, collate_fn=lambda rows: {"x": torch.zeros(len(rows))})
    with pytest.raises(ValueError, match="AnswerMonitor has no texts to compare"):
        trainer.validate(Answerer(), rows, verbose=False)
