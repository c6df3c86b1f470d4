"""Parts alone, no Lightning: the loss, decay groups, schedule and perplexity in a plain torch loop.

The model is a GRU over bytes. All that `linear_cross_entropy` wants is what goes into the output
head and the head's weight; the N x V logits never exist at once, in either direction.

    python examples/loss_alone.py --steps 100
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import nn

from lightning_llm.losses import linear_cross_entropy
from lightning_llm.metrics import Perplexity
from lightning_llm.optim import AdamW, WarmupCosine, parameter_groups


def main(steps: int = 100) -> float:
    """Train a GRU and return the perplexity of the last tenth of the steps.

    Args:
        steps: Optimizer steps.
    """
    torch.manual_seed(1)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-c]*.py"))
    text = bytearray(b"\n".join(file.read_bytes() for file in files))
    stream = torch.frombuffer(text, dtype=torch.uint8).long()

    embedding, gru, head = (
        nn.Embedding(256, 64),
        nn.GRU(64, 128, batch_first=True),
        nn.Linear(128, 256),
    )
    # --8<-- [start:loop]
    model = nn.ModuleList([embedding, gru, head])
    optimizer = AdamW(parameter_groups(model), lr=3e-3)  # biases and embedding are not decayed
    schedule = WarmupCosine(optimizer, warmup_steps=0.1, max_steps=steps)
    perplexity = Perplexity()

    for step in range(steps):
        starts = torch.randint(len(stream) - 65, (16,))
        window = stream[starts[:, None] + torch.arange(65)]  # (B, T + 1)
        inputs, targets = window[:, :-1], window[:, 1:].flatten()
        hidden, _ = gru(embedding(inputs))  # (B, T, D)
        loss = linear_cross_entropy(
            hidden.flatten(0, 1), head.weight, targets, bias=head.bias, reduction="mean"
        )
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step >= 0.9 * steps:
            perplexity.update(loss.detach() * len(targets), len(targets))
    # --8<-- [end:loop]
    result = float(perplexity.compute())
    print(f"perplexity per byte over the last steps: {result:.2f} (uniform: 256)")
    return result


if __name__ == "__main__":
    auto_cli(main)
