"""A foreign module that continues prompts with what it knows by heart, and its corpus."""

from __future__ import annotations

import hashlib
from typing import Any

import lightning.pytorch as L
import torch
from foreign import loader

WORDS = "the cat sat on a mat while two old dogs slept near warm stones".split()


def make_corpus(count: int, *, references: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of different lengths, with references that the answers share words with."""
    rows = []
    for index in range(count):
        digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
        words = [WORDS[byte % len(WORDS)] for byte in digest]
        text = " ".join(words[: 6 + index % 5])
        others = [" ".join(words[i : i + 7]) for i in range(1, references)]
        rows.append({"prompt": f"{index}: {text}", "references": [text, *others]})
    return rows


def answer(prompt: str) -> str:
    """Not quite the reference: the first words of every second prompt change places."""
    number, _, text = prompt.partition(": ")
    words = text.split()
    if int(number) % 2:
        words[:2] = words[1::-1]
    return " ".join(words[: 5 + int(number) % 3])


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "prompts": [row["prompt"] for row in rows],
        "references": [row["references"] for row in rows],
    }


def corpus_loader(rows: list[dict[str, Any]], batch_size: int = 2, **options: Any) -> Any:
    return loader(rows, batch_size, collate_fn=collate, **options)


class Translator(L.LightningModule):
    """Its steps return what ``returns`` says; ``generate`` records its calls."""

    def __init__(self, returns: str = "nothing") -> None:
        super().__init__()
        self.returns = returns
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls: list[list[str]] = []
        self.options: list[dict[str, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if self.returns == "nothing":
            return None
        outputs = {"predictions": [answer(prompt) for prompt in batch["prompts"]]}
        if self.returns == "both":
            outputs["references"] = batch["references"]
        return outputs

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.validation_step(batch, batch_idx)

    def generate(
        self,
        prompts: list[str],
        *,
        max_new_tokens: int = 0,
        temperature: float = 1.0,
        num_beams: int = 1,
        **others: Any,
    ) -> list[str]:
        assert not self.training
        self.calls.append(prompts)
        self.options.append(
            {"max_new_tokens": max_new_tokens, "temperature": temperature, "num_beams": num_beams}
            | others
        )
        return [answer(prompt) for prompt in prompts]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
