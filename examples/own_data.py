"""Data of your own: any LightningDataModule whose batches are `{input_ids, shift_labels}`.

The task is to sort digits, made up on the fly: `52913>12359`. The targets of the question are -100,
so the loss is on the answer alone and the gradient is divided by the answer's tokens.

    python examples/own_data.py --steps 300
"""

from __future__ import annotations

import math
from functools import partial

import lightning.pytorch as L
import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_llm import CausalLM
from lightning_llm.callbacks import TokenProgressBar
from lightning_llm.models import TransformerConfig
from lightning_llm.optim import AdamW, WarmupCosine

DIGITS = 6
ARROW = 10  # the id after the ten digits


# --8<-- [start:data]
class SortedDigits(Dataset):
    """Row ``i`` is a function of seed and ``i``: digits, an arrow, the digits in order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        digits = torch.randint(10, (DIGITS,), generator=draw)
        text = torch.cat([digits, torch.tensor([ARROW]), digits.sort().values])
        targets = text[1:].clone()
        targets[:DIGITS] = -100  # of the digits to sort and of the arrow nothing is learned
        return {"input_ids": text[:-1], "shift_labels": targets}


class SortingData(L.LightningDataModule):
    """Batches for `CausalLM`; it checks ``vocab_size`` and ``seq_len`` against the model's."""

    vocab_size = 11
    seq_len = 2 * DIGITS

    def train_dataloader(self) -> DataLoader:
        return DataLoader(SortedDigits(100_000, seed=1), batch_size=64)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(SortedDigits(512, seed=2), batch_size=128)


# --8<-- [end:data]


def main(steps: int = 300) -> dict[str, float]:
    """Train, then ask for the answers.

    Args:
        steps: Optimizer steps.
    """
    L.seed_everything(1, verbose=False)
    data = SortingData()
    config = TransformerConfig(
        vocab_size=data.vocab_size, n_layers=2, dim=64, n_heads=4, max_seq_len=2 * DIGITS + 1
    )
    model = CausalLM(
        config,
        optimizer=partial(AdamW, lr=3e-3),
        lr_scheduler=partial(WarmupCosine, warmup_steps=0.1),
    )
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        log_every_n_steps=50,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[TokenProgressBar()],
    )
    trainer.fit(model, data)
    # --8<-- [start:answers]
    rows = torch.stack([SortedDigits(512, seed=3)[i]["input_ids"] for i in range(200)])
    questions = rows[:, : DIGITS + 1]  # up to the arrow
    answers = model.generate(questions, max_new_tokens=DIGITS)[:, DIGITS + 1 :]
    right = (answers == questions[:, :DIGITS].sort(dim=1).values).all(dim=1)
    # --8<-- [end:answers]
    for question, answer in zip(questions[:3].tolist(), answers[:3].tolist()):
        print("".join(map(str, question[:DIGITS])), ">", "".join(map(str, answer)))
    perplexity = math.exp(trainer.callback_metrics["val_loss"])
    print(f"perplexity {perplexity:.3f}; {100 * right.float().mean():.0f} % sorted correctly")
    return {"perplexity": perplexity, "right": float(right.float().mean())}


if __name__ == "__main__":
    auto_cli(main)
