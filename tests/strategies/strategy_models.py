"""Small LightningModules and what they train on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

VOCAB = 61
LENGTH = 16


def loader(rows: int = 8, batch_size: int = 2) -> DataLoader:
    """Rows of random ids with the next token as target; always the same."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCAB, (rows, LENGTH + 1), generator=generator)
    return DataLoader(
        [{"input_ids": row[:-1], "shift_labels": row[1:]} for row in ids], batch_size=batch_size
    )


def trainer(**options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return L.Trainer(**{**defaults, **options})


class Losses(L.Callback):
    """The losses of a run, by kind of step, and how many graphs had been compiled before each."""

    def __init__(self) -> None:
        self.train: list[Tensor] = []
        self.val: list[Tensor] = []
        self.graphs: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.train.append(outputs["loss"].detach())

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.val.append(loss.detach())


class ForeignBlock(nn.Module):
    """A residual layer that somebody else wrote."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Foreign(L.LightningModule):
    """Somebody else's LightningModule: blocks in a plain ``nn.Sequential``."""

    def __init__(self, depth: int = 3, dim: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, dim)
        self.body = nn.Sequential(*(ForeignBlock(dim) for _ in range(depth)))
        self.head = nn.Linear(dim, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(ids)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["input_ids"]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, batch["shift_labels"].flatten())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class HuggingFace(Foreign):
    """A Hugging Face causal language model in a LightningModule that says nothing of caches."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        del self.embedding, self.body, self.head
        self.net = net

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.net(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
