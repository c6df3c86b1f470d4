"""A LightningModule that knows nothing of this package, its data, and brute-force answers."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

VOCAB = 13
LENGTH = 6


class Bigram(L.LightningModule):
    """Predicts each token from the one before; returns from its steps what ``returns`` says."""

    def __init__(self, returns: str = "sums") -> None:
        super().__init__()
        self.returns = returns
        self.table = torch.nn.Embedding(VOCAB, VOCAB)
        torch.nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(5))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.mean_loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.evaluate(batch, "val_loss")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.evaluate(batch, "test_loss")

    def evaluate(self, batch: Any, name: str) -> Any:
        logits = self.table(batch["input_ids"])
        loss = self.mean_loss(batch)
        self.log(name, loss, sync_dist=True)
        targets = shifted(batch)
        flat = logits[:, : targets.shape[1]].flatten(0, 1), targets.flatten()
        if self.returns == "sums":
            nll_sum = F.cross_entropy(*flat, reduction="sum", ignore_index=-100)
            return {"loss": loss, "nll_sum": nll_sum, "num_tokens": (targets != -100).sum()}
        if self.returns == "numbers":
            nll_sum = F.cross_entropy(*flat, reduction="sum", ignore_index=-100)
            return {"nll_sum": nll_sum.item(), "num_tokens": int((targets != -100).sum())}
        return {
            "logits": {"loss": loss, "logits": logits},
            "half": {"logits": logits.to(torch.bfloat16)},
            "attribute": Output(loss, logits),
            "loss": {"loss": loss},
            "tensor": loss,
            "nothing": None,
        }[self.returns]

    def mean_loss(self, batch: Any) -> Tensor:
        logits = self.table(batch["input_ids"])
        targets = shifted(batch)
        flat = logits[:, : targets.shape[1]].flatten(0, 1), targets.flatten()
        return F.cross_entropy(*flat, ignore_index=-100)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Output:
    """A step output that is an object, like those of Hugging Face models."""

    def __init__(self, loss: Tensor, logits: Tensor) -> None:
        self.loss = loss
        self.logits = logits


def shifted(batch: Any) -> Tensor:
    return batch["shift_labels"] if "shift_labels" in batch else batch["labels"][:, 1:]


def make_rows(
    count: int, *, seed: int = 0, labels: str = "shift_labels"
) -> list[dict[str, Tensor]]:
    """Rows with unequally many targets, so that means of means are wrong."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        ids = torch.randint(VOCAB, (LENGTH + 1,), generator=generator)
        targets = ids[1:].clone() if labels == "shift_labels" else ids[:-1].clone()
        targets[1 + index % (LENGTH - 1) :] = -100
        rows.append({"input_ids": ids[:-1], labels: targets})
    return rows


def brute_force(module: Bigram, rows: list[dict[str, Tensor]]) -> tuple[float, int]:
    """NLL in nats and number of targets, one token at a time in float64."""
    table = module.table.weight.detach().double()
    nll, tokens = 0.0, 0
    for row in rows:
        targets = shifted({key: value[None] for key, value in row.items()})[0]
        for previous, target in zip(row["input_ids"].tolist(), targets.tolist()):
            if target != -100:
                nll -= table[previous].log_softmax(-1)[target].item()
                tokens += 1
    return nll, tokens


def perplexity(module: Bigram, rows: list[dict[str, Tensor]]) -> float:
    nll, tokens = brute_force(module, rows)
    return math.exp(nll / tokens)


def loader(rows: list[Any], batch_size: int = 1, **options: Any) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=batch_size, **options)


def trainer(**options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**(defaults | options))


class HostReads(TorchDispatchMode):
    """Counts the operators by which the host waits for a value on the device."""

    NAMES = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() in self.NAMES
        return func(*args, **(kwargs or {}))
