"""Blocks are compiled and checkpointed in place, and given back as they were."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from strategy_models import Foreign
from torch import nn
from torch._dynamo.utils import counters

from lightning_llm.generation import generate
from lightning_llm.models import KVCache, Transformer, TransformerConfig
from lightning_llm.strategies.parallelize import BlockOptions

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
EAGER = {"backend": "eager"}
TRACED = {"backend": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def model() -> Transformer:
    config = TransformerConfig(vocab_size=23, max_seq_len=16, n_layers=3, dim=32, n_heads=4)
    return Transformer(config).train()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_names_and_classes_stay_and_nothing_is_left() -> None:
    net = model()
    attributes = [dict(vars(block)) for block in net.blocks]
    keys, modules = list(net.state_dict()), dict(net.named_modules())
    options = BlockOptions(TRACED, "selective")
    options.apply(net)
    net(torch.arange(8)[None]).sum().backward()
    assert graphs() == 1
    assert list(net.state_dict()) == keys
    assert dict(net.named_modules()) == modules
    options.undo()
    counters.clear()
    net(torch.arange(9)[None]).sum().backward()
    assert graphs() == 0
    for block, before in zip(net.blocks, attributes, strict=True):
        assert vars(block).keys() - before.keys() <= {"_compiled_call_impl"}
        assert block._compiled_call_impl is None


def test_copies_and_pickles_are_plain() -> None:
    net = model()
    BlockOptions(TRACED, "full").apply(net)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert copied(torch.arange(8)[None]).abs().max() == 0  # its own weights, not the original's
    assert net(torch.arange(8)[None]).abs().max() > 0
    buffer = io.BytesIO()
    torch.save(copied, buffer)


def test_decoding_with_a_cache_is_left_alone() -> None:
    net = model().eval()
    ids = torch.arange(5)[None]
    expected = generate(net, ids, max_new_tokens=8)
    BlockOptions(TRACED, "full").apply(net)
    assert torch.equal(generate(net, ids, max_new_tokens=8), expected)
    assert graphs() == 0


def test_cache_in_training_is_said() -> None:
    net = model()
    BlockOptions(activation_checkpointing="full").apply(net)
    with pytest.warns(UserWarning, match="Block was given a key/value cache.*use_cache=False"):
        net(torch.arange(8)[None], cache=KVCache(net.config, 1))


def test_a_module_without_gradient_still_runs() -> None:
    """A frozen first half: no gradient reaches the blocks' inputs."""
    net = model()
    net.requires_grad_(False)
    net.blocks[-1].requires_grad_(True)
    BlockOptions(activation_checkpointing="full").apply(net)
    net(torch.arange(8)[None]).sum().backward()
    assert net.blocks[-1].attention.qkv.weight.grad is not None
    assert net.blocks[0].attention.qkv.weight.grad is None


def test_hooks_of_blocks_run() -> None:
    net = model()
    seen: list[Any] = []
    for block in net.blocks:
        block.register_forward_hook(lambda block, args, output: seen.append(output[0].shape))
    BlockOptions(activation_checkpointing="full").apply(net)
    net(torch.arange(8)[None])
    assert seen == [(1, 8, 32)] * 3


def test_nothing_asked_nothing_done() -> None:
    plain = nn.Linear(2, 2)
    BlockOptions().apply(plain)  # no blocks, no error
    with pytest.raises(ValueError, match="no list of blocks"):
        BlockOptions(compile=True).apply(plain)
    with pytest.raises(ValueError, match="no list of blocks"):
        BlockOptions(activation_checkpointing="full").apply(plain)


def test_many_shapes_are_compiled() -> None:
    """More than torch's default of eight versions, as of a collator that pads to the longest."""
    net = model()
    BlockOptions(EAGER).apply(net)
    for length in range(2, 12):
        net(torch.arange(length)[None])
    assert graphs() == 10


def test_named_blocks_are_compiled() -> None:
    module = Foreign()
    BlockOptions(EAGER, block_class="ForeignBlock").apply(module)
    module(torch.arange(8)[None])
    assert graphs() == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation_checkpointing": "half"}, ValueError, "activation_checkpointing='half' must"),
        (
            {"compile": EAGER, "activation_checkpointing": "full"},
            ValueError,
            "backend='eager' with activation_checkpointing='full'.*use backend='aot_eager'",
        ),
        ({"compile": "yes"}, TypeError, "compile='yes' must be True, False or a dict"),
        ({"compile": {"ful_graph": True}}, ValueError, r"unknown options \['ful_graph'\].*mode"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BlockOptions(**options)


@pytest.mark.parametrize(
    "compile", [{"mode": "reduce-overhead"}, {"options": {"triton.cudagraphs": True}}]
)
def test_cuda_graphs_do_not_accumulate(compile: dict[str, Any]) -> None:
    options = BlockOptions(compile)
    options.check_accumulation(1)
    with pytest.raises(ValueError, match=r"wrong gradients with accumulate_grad_batches=4"):
        options.check_accumulation(4)
    BlockOptions({"mode": "max-autotune-no-cudagraphs"}).check_accumulation(4)
