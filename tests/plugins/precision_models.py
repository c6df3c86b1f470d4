"""A small language model, text with structure to learn, and short ways to train on it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.optim import AdamW

VOCAB = 48
LENGTH = 32


def config(**fields: Any) -> TransformerConfig:
    sizes = {"vocab_size": VOCAB, "max_seq_len": LENGTH, "n_layers": 2, "dim": 48, "n_heads": 4}
    return TransformerConfig(**sizes | fields)


def rows(count: int) -> list[dict[str, Tensor]]:
    """Walks through a random graph with four edges per token: about log(4) nats per token."""
    generator = torch.Generator().manual_seed(11)
    edges = torch.randint(0, VOCAB, (VOCAB, 4), generator=generator)
    steps = torch.randint(0, 4, (count, LENGTH), generator=generator)
    tokens = [torch.randint(0, VOCAB, (count,), generator=generator)]
    for index in range(LENGTH):
        tokens.append(edges[tokens[-1], steps[:, index]])
    ids = torch.stack(tokens, dim=1)
    return [{"input_ids": row[:-1].clone(), "shift_labels": row[1:].clone()} for row in ids]


class Losses(L.Callback):
    """The training losses of a run."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].detach())

    def last(self, count: int) -> float:
        return float(torch.stack(self.losses[-count:]).mean())


def trainer(*plugins: Any, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": -1,
        "log_every_n_steps": 1000,
        "plugins": list(plugins),
    }
    return L.Trainer(**{**defaults, **options})


def language_model(lr: float = 3e-3, **fields: Any) -> CausalLM:
    torch.manual_seed(3)
    return CausalLM(config(**fields), optimizer=lambda groups: AdamW(groups, lr=lr))


def train(module: L.LightningModule, steps: int, *plugins: Any, **options: Any) -> Losses:
    losses = Losses()
    callbacks = [losses, *options.pop("callbacks", [])]
    runner = trainer(*plugins, max_steps=steps, callbacks=callbacks, **options)
    runner.fit(module, DataLoader(rows(16 * steps), batch_size=8))
    return losses


class Foreign(L.LightningModule):
    """Somebody else's module, on Lightning's own paths for clipping and loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(VOCAB, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, VOCAB)
        self.register_buffer("scale", torch.full((), 1.0 + 2**-12))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.head(self.norm(self.embedding(batch["input_ids"]))).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)
