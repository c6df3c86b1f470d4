"""Runs of small models whose ranks, in whatever number, see the same rows in the same steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from ranks import run_on_ranks
from strategy_models import LENGTH, VOCAB, trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig

CONFIG = TransformerConfig(vocab_size=VOCAB, max_seq_len=LENGTH, n_layers=3, dim=16, n_heads=2)
GLOBAL_BATCH = 4


class Rows(Dataset):
    """Random ids; the later a row, the fewer of its tokens are targets."""

    def __init__(self, count: int = 32) -> None:
        generator = torch.Generator().manual_seed(5)
        self.ids = torch.randint(0, VOCAB, (count, LENGTH + 1), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        targets = self.ids[index, 1:].clone()
        targets[: 3 * (index % 5)] = -100
        return {"input_ids": self.ids[index, :-1], "shift_labels": targets}


class Shares(Sampler):
    """This rank's contiguous share of every global batch of rows."""

    def __init__(self, rows: int, rank: int, ranks: int) -> None:
        self.share = GLOBAL_BATCH // ranks
        self.batches = [
            list(range(start + rank * self.share, start + (rank + 1) * self.share))
            for start in range(0, rows, GLOBAL_BATCH)
        ]

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Data(L.LightningDataModule):
    """Rows dealt out so that a step is the same whatever the number of ranks."""

    def train_dataloader(self) -> DataLoader:
        strategy: Any = self.trainer.strategy
        kwargs = getattr(strategy, "distributed_sampler_kwargs", None)
        kwargs = kwargs or {"rank": 0, "num_replicas": 1}
        rows = Rows()
        shares = Shares(len(rows), kwargs["rank"], kwargs["num_replicas"])
        return DataLoader(rows, batch_sampler=shares)

    val_dataloader = train_dataloader


class Watch(L.Callback):
    """Keeps logged norms, and whole weights and optimizer states of the moments that matter."""

    def __init__(self, save: Any = None, save_after: int = 4) -> None:
        self.save, self.save_after = save, save_after
        self.norms: list[float] = []
        self.found: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.found["start"] = state_of(trainer, module)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if "grad_norm" in trainer.callback_metrics:
            self.norms.append(float(trainer.callback_metrics["grad_norm"]))
        if self.save is not None and trainer.global_step == self.save_after:
            trainer.save_checkpoint(self.save)
            self.found["saved"] = state_of(trainer, module)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.found |= state_of(trainer, module)
        self.found["norms"] = self.norms
        val_loss = trainer.callback_metrics.get("val_loss", torch.tensor(0.0))
        self.found["val_loss"] = float(val_loss)


def state_of(trainer: Any, module: Any) -> dict[str, Any]:
    """Whole weights and optimizer states."""
    return {
        "weights": whole(module.state_dict()),
        "optimizer": optimizer_state(module, trainer.optimizers[0]),
    }


def whole(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: _whole(value) for name, value in state.items()}


def _whole(value: Any) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def optimizer_state(module: Any, optimizer: Any) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]} {key}": _whole(value)
        for parameter, own in optimizer.state.items()
        for key, value in own.items()
        if isinstance(value, Tensor)
    }


def fit(
    module: Callable[[], Any] | None = None,
    *,
    ckpt_path: Any = None,
    save: Any = None,
    seed: int = 3,
    **options: Any,
) -> dict[str, Any]:
    """Train from a seed and return what `Watch` kept."""
    torch.manual_seed(seed)
    build = module or (lambda: CausalLM(CONFIG))
    watch = Watch(save)
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "gradient_clip_val": 0.5,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    runner = trainer(
        **{**defaults, **options, "callbacks": [watch, *options.get("callbacks", [])]},
        use_distributed_sampler=False,
    )
    runner.fit(build(), Data(), ckpt_path=ckpt_path)
    return watch.found


def spawn(main: Callable[..., Any], ranks: int, directory: Path) -> list[Any]:
    """Run ``main(directory)`` on gloo ranks and return what each one gave."""
    return run_on_ranks(main, ranks, directory, directory)
