"""What a batch of prompts and targets says, read back as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_llm.data import TokenizerSpec

# 256 bytes and a few pairs of them: any text, tokens that are not bytes, no training to wait for.
SMALL = TokenizerSpec("bpe", vocab_size=300)


def spans(labels: Tensor, document_ids: Tensor) -> list[list[int]]:
    """The targets of each document in each row, in order."""
    found = []
    for row, documents in zip(labels, document_ids):
        for document in range(int(documents.max()) + 1):
            here = row[documents == document]
            found.append(here[here != -100].tolist())
    return found


def targets_as_text(tokenizer: Any, loader: Any) -> list[str]:
    """The targets of every document that a loader gives, special tokens included."""
    texts = []
    for batch in loader:
        ids = batch.get("document_ids")
        if ids is None:
            ids = torch.zeros_like(batch["input_ids"])
        texts += [tokenizer.decode(span) for span in spans(batch["shift_labels"], ids) if span]
    return texts


def documents_as_text(tokenizer: Any, loader: Any) -> list[str]:
    """The inputs of every document that a loader of packed rows gives."""
    return [
        tokenizer.decode(row[documents == document].tolist())
        for batch in loader
        for row, documents in zip(batch["input_ids"], batch["document_ids"])
        for document in range(int(documents.max()) + 1)
    ]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
