"""An optimizer of your own, given as an argument, or with full control of groups and rates.

Lion keeps one momentum and steps by its sign (Chen et al. 2023, https://arxiv.org/abs/2302.06675).
`CausalLM(optimizer=...)` takes any function from parameter groups to a torch optimizer; the groups
leave norms, biases and embeddings without weight decay. In a recipe the same is the class path
`my_package.Lion` under `optimizer`, with `--allow_import my_package` on the command line.

    python examples/own_optimizer.py --steps 150
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from jsonargparse import auto_cli
from torch.optim import Optimizer

from lightning_llm import CausalLM, TextDataModule
from lightning_llm.callbacks import TokenProgressBar
from lightning_llm.data import TokenizerSpec
from lightning_llm.models import TransformerConfig
from lightning_llm.optim import AdamW, WarmupCosine, parameter_groups


# --8<-- [start:lion]
class Lion(Optimizer):
    """w <- w - lr * (sign(beta1 * m + (1 - beta1) * g) + decay * w), m <- beta2 * m + ..."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():  # Lightning's closure: forward, backward, clipping
            loss = None if closure is None else closure()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                m = self.state[p]["momentum"]
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(torch.sign(m.lerp(p.grad, 1 - beta1)), alpha=-lr)
                m.lerp_(p.grad, 1 - beta2)
        return loss


# --8<-- [end:lion]


# --8<-- [start:groups]
class TwoRates(CausalLM):
    """Embeddings learn ten times as fast as the rest."""

    def configure_optimizers(self) -> AdamW:
        groups = parameter_groups(self.model)  # kinds: matrix, head, embedding, vector
        for group in groups:
            if group["kind"] == "embedding":
                group["lr"] = 3e-3
        return AdamW(groups, lr=3e-4)


# --8<-- [end:groups]


def main(steps: int = 150) -> dict[str, float]:
    """Train twice: the optimizer as an argument, and groups chosen in a subclass.

    Args:
        steps: Optimizer steps of each run.
    """
    data = TextDataModule(
        train_files=[f"{sysconfig.get_paths()['stdlib']}/[a-c]*.py"],
        tokenizer=TokenizerSpec("byte"),
        seq_len=128,
        micro_batch_size=16,
        val_fraction=0.05,
    )
    config = TransformerConfig(
        vocab_size=data.vocab_size, n_layers=2, dim=128, n_heads=4, max_seq_len=128
    )
    # --8<-- [start:argument]
    models = {
        "Lion, cosine": CausalLM(
            config,
            optimizer=partial(Lion, lr=6e-4, weight_decay=0.3),
            lr_scheduler=partial(WarmupCosine, warmup_steps=0.1),
        ),
        "AdamW, two rates": TwoRates(config),
    }
    # --8<-- [end:argument]
    perplexity = {}
    for name, model in models.items():
        print(f"== {name}")
        trainer = L.Trainer(
            max_steps=steps,
            val_check_interval=steps,
            check_val_every_n_epoch=None,
            limit_val_batches=10,
            gradient_clip_val=1.0,
            log_every_n_steps=50,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[TokenProgressBar()],
        )
        trainer.fit(model, data)
        perplexity[name] = math.exp(trainer.callback_metrics["val_loss"])
    for name, value in perplexity.items():
        print(f"{name}: validation perplexity {value:.2f} per byte")
    return perplexity


if __name__ == "__main__":
    auto_cli(main)
