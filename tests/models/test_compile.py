"""Blocks trace into one graph each, once: no breaks, no recompilations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from variants import VARIANTS, build, inputs

from lightning_llm.models import Transformer

# Dynamo looks at the gradient of a block's input, which is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(**VARIANTS[request.param], n_layers=4, dropout=0.0).train()


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compile_blocks(model: Transformer) -> None:
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)


def step(model: Transformer, **options: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    hidden = model.backbone(inputs(), **options)
    aux = model.aux_loss()
    (hidden.square().sum() + (0 if aux is None else aux)).backward()
    return hidden.detach(), model.blocks[0].attention.qkv.weight.grad.clone()


@pytest.mark.parametrize("documents", [False, True])
def test_blocks_compile_once(model: Transformer, documents: bool) -> None:
    options = {}
    if documents:
        options["document_ids"] = torch.tensor([[0] * 4 + [1] * 6, [0] * 9 + [1]])
    torch.manual_seed(3)
    expected = step(model, **options)
    compile_blocks(model)
    for _ in range(3):
        torch.manual_seed(3)
        results = step(model, **options)
    for result, eager in zip(results, expected):
        torch.testing.assert_close(result, eager)
    # Layers that are given the same kinds of input share one graph.
    config = model.config
    kinds = {
        (
            documents or config.layer_window(layer) is not None or config.positions == "alibi",
            config.layer_rotation(layer) is None,
            config.has_value_embedding(layer),
        )
        for layer in range(config.n_layers)
    }
    assert counters["stats"]["unique_graphs"] == len(kinds)
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["llama", "mixture", "additive", "cosine", "modern", "gemma2"])
def test_checkpointed_blocks_compile(name: str) -> None:
    """Activation checkpointing inside the compiled region, the mixture's loss included."""
    model = build(**VARIANTS[name]).train()
    torch.manual_seed(3)
    expected = step(model)
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(
            forward, *args, use_reentrant=False
        )
    compile_blocks(model)
    torch.manual_seed(3)
    for result, eager in zip(step(model), expected):
        torch.testing.assert_close(result, eager)
    assert not counters["graph_break"]


def test_dropout_compiles() -> None:
    model = build(dropout=0.5).train()
    compile_blocks(model)
    first, _ = step(model)
    second, _ = step(model)
    assert not torch.allclose(first, second)
    assert counters["stats"]["unique_graphs"] == 1


def test_whole_model_compiles() -> None:
    model = build(sliding_window=4).train()
    ids = inputs()
    expected = model(ids)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), expected)
