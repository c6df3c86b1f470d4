"""Activation checkpointing: the same gradients, and only the promised part computed twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.strategies.parallelize import BlockOptions

LAYERS = 2


def model(**fields: Any) -> Transformer:
    fields = {"vocab_size": 23, "max_seq_len": 16, "n_layers": LAYERS, "dim": 32} | fields
    return Transformer(TransformerConfig(n_heads=4, **fields)).train()


class Operators(TorchDispatchMode):
    """Counts operators as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def gradients(net: Transformer) -> tuple[list[torch.Tensor], Counter[str]]:
    """Gradients of a step, and what the backward pass ran."""
    net.zero_grad()
    torch.manual_seed(2)
    ids = torch.randint(0, 23, (2, 16))
    loss = net.backbone(ids).square().sum()
    if net.config.n_experts:
        loss = loss + net.aux_loss()
    with Operators() as operators:
        loss.backward()
    return [parameter.grad for parameter in net.parameters()], operators.counts


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
@pytest.mark.parametrize(
    "fields", [{}, {"dropout": 0.3}, {"n_experts": 3}, {"sliding_window": 3}], ids=str
)
def test_gradients_do_not_change(checkpointing: Any, fields: dict[str, Any]) -> None:
    net = model(**fields)
    expected, _ = gradients(net)
    BlockOptions(activation_checkpointing=checkpointing).apply(net)
    found, _ = gradients(net)
    for gradient, reference in zip(found, expected, strict=True):
        assert torch.equal(gradient, reference)


def test_what_is_computed_twice() -> None:
    """Of a SwiGLU block: 5 products forward, 10 backward, one attention."""
    attention = "_scaled_dot_product_flash_attention_for_cpu.default"
    net = model()
    counts = {}
    for checkpointing in ("none", "full", "selective"):
        options = BlockOptions(activation_checkpointing=checkpointing)
        options.apply(net)
        counts[checkpointing] = gradients(net)[1]
        options.undo()
    assert {name: count["mm.default"] for name, count in counts.items()} == {
        "none": 10 * LAYERS,
        # The last product's output is needed by nothing in the block: its repetition stops before.
        "full": 14 * LAYERS,
        "selective": 12 * LAYERS,  # the second and the fourth
    }
    assert {name: count[attention] for name, count in counts.items()} == {
        "none": 0,
        "full": LAYERS,
        "selective": 0,
    }


def test_nothing_is_kept_back_in_evaluation() -> None:
    net = model()
    expected = net.backbone(torch.arange(8)[None]).detach()
    BlockOptions(activation_checkpointing="full").apply(net)
    with torch.no_grad():
        assert torch.equal(net.backbone(torch.arange(8)[None]), expected)
