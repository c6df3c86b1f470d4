"""Only our callbacks and strategy, around a module, a model and a loader that are somebody else's.

The module below knows nothing of lightning_llm: torch's own encoder layers, torch's DataLoader,
labels as Hugging Face aligns them, a step that returns the mean loss. It gains exact perplexity,
speed, samples, a guard against NaN, and blocks that are compiled in place.

    python examples/callbacks_in_a_foreign_project.py --steps 150
    python examples/callbacks_in_a_foreign_project.py --compile true
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_llm.callbacks import FiniteGuard, PerplexityMonitor, SampleText, SpeedMonitor
from lightning_llm.strategies import SingleDeviceStrategy


# --8<-- [start:module]
class TheirModule(L.LightningModule):
    """Predicts the next byte with torch's encoder layers."""

    def __init__(self, dim: int = 128, seq_len: int = 128) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, dim), nn.Embedding(seq_len, dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(dim, 256)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        hidden = self.tokens(input_ids) + self.places.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=self.device)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.head(hidden)  # (B, T, 256)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self(batch["input_ids"])[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


# --8<-- [end:module]


@torch.no_grad()
def continue_text(module: TheirModule, prompts: list[str], max_new_tokens: int) -> list[str]:
    """What `SampleText` calls, since their module has no `generate`: likeliest bytes."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt.encode())], device=module.device)
        for _ in range(max_new_tokens):
            ids = torch.cat([ids, module(ids)[:, -1:].argmax(-1)], dim=1)
        texts.append(bytes(ids[0].tolist()).decode(errors="replace")[len(prompt) :])
    return texts


def loader(files: list[Path], batch_size: int, seq_len: int = 128, **options: Any) -> DataLoader:
    """Rows of ``seq_len`` bytes, with the inputs as labels: Hugging Face's convention."""
    text = b"\n".join(file.read_bytes() for file in files)
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = rows[: len(rows) // seq_len * seq_len].view(-1, seq_len)
    examples = [{"input_ids": row, "labels": row} for row in rows]
    return DataLoader(examples, batch_size=batch_size, **options)


def main(steps: int = 150, compile: bool = False) -> dict[str, float]:
    """Train the foreign module as a guest would find it.

    Args:
        steps: Optimizer steps.
        compile: Compile its encoder layers in place; the first step then takes longer.
    """
    L.seed_everything(1, verbose=False)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
    train, val = loader(files[5:], batch_size=16, shuffle=True), loader(files[:2], batch_size=64)
    # --8<-- [start:trainer]
    trainer = L.Trainer(
        max_steps=steps,
        strategy=SingleDeviceStrategy(compile=compile),
        callbacks=[
            PerplexityMonitor(),  # exp(total loss / total tokens), whatever the batches
            SpeedMonitor(),
            FiniteGuard("raise"),
            SampleText(["def ", "import "], max_new_tokens=30, generate_fn=continue_text),
        ],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
    )
    trainer.fit(TheirModule(), train, val)
    # --8<-- [end:trainer]
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name in ("val_perplexity", "tokens_seen", "tokens_per_second"):
        print(f"{name}: {logged[name]:,.2f}")
    return logged


if __name__ == "__main__":
    auto_cli(main)
