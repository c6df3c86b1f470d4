"""A loss of your own: subclass `CausalLM` and override one method.

The focal loss weighs each token by (1 - p)^gamma: what the model already knows counts for less
(Lin et al. 2017, https://arxiv.org/abs/1708.02002). Logits are never whole in memory here either.
Everything around the loss stays: token-exact gradients, validation, checkpoints, generation.

    python examples/own_loss.py --steps 150
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
from jsonargparse import auto_cli
from torch import Tensor

from lightning_llm import CausalLM, TextDataModule
from lightning_llm.callbacks import TokenProgressBar
from lightning_llm.data import TokenizerSpec
from lightning_llm.losses import linear_cross_entropy
from lightning_llm.models import TransformerConfig


# --8<-- [start:loss]
class FocalLM(CausalLM):
    """A causal language model that looks harder at the tokens it finds unlikely."""

    def __init__(self, config: TransformerConfig, *, gamma: float = 1.0, **options: Any) -> None:
        super().__init__(config, **options)
        self.gamma = gamma
        self.save_hyperparameters({"gamma": gamma})

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().compute_loss(batch)  # val_loss stays the plain likelihood
        labels, head = batch["shift_labels"].flatten(), self.output_head()
        nll = linear_cross_entropy(
            self.hidden_states(batch).flatten(0, 1),  # (N, D)
            head.weight,  # (V, D)
            labels,  # (N,)
            logit_softcap=head.logit_softcap,
            chunk_size=self.loss_chunk_size,
            reduction="none",  # (N,), 0 where there is no target
        )
        # 1 - p, kept above 0: there the slope of a power below 1 is infinite.
        doubt = (-(-nll).expm1()).clamp(min=1e-6)
        focal = (doubt**self.gamma * nll).sum()
        # Logged is the value, the likelihood; learned from is the gradient, of the focal loss.
        return focal + (nll.sum() - focal).detach(), (labels != -100).sum()


# --8<-- [end:loss]


def main(steps: int = 150, gamma: float = 1.0) -> dict[str, float]:
    """Train with the loss of one's own and without, and compare the perplexity.

    Args:
        steps: Optimizer steps of each of the two runs.
        gamma: 0 is the plain loss; the larger, the less a known token counts.
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
    perplexity = {}
    for name, options in (("plain", {"gamma": 0.0}), ("focal", {"gamma": gamma})):
        print(f"== {name}: {options}")
        L.seed_everything(1, verbose=False)
        trainer = L.Trainer(
            max_steps=steps,
            val_check_interval=steps,
            check_val_every_n_epoch=None,
            limit_val_batches=10,
            log_every_n_steps=50,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[TokenProgressBar()],
        )
        trainer.fit(FocalLM(config, **options), data)
        perplexity[name] = math.exp(trainer.callback_metrics["val_loss"])
    for name, value in perplexity.items():
        print(f"{name}: validation perplexity {value:.2f} per byte")
    return perplexity


if __name__ == "__main__":
    auto_cli(main)
