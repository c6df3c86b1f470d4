"""Which blocks are found, in models of every style."""

from __future__ import annotations

import pytest
import torch
from strategy_models import Foreign
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.strategies.blocks import find_blocks

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))


def gpt2() -> nn.Module:
    options = {"n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, **options))


def t5() -> nn.Module:
    config = T5Config(vocab_size=64, d_model=32, d_ff=64, num_layers=3, num_heads=4, d_kv=8)
    return T5ForConditionalGeneration(config)


def ours() -> nn.Module:
    # A vocabulary that outweighs the blocks is no reason to overlook them.
    return CausalLM(TransformerConfig(vocab_size=5000, n_layers=3, dim=32, n_heads=4))


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


class Experts(nn.Module):
    """Blocks of which each holds a list of alike modules."""

    def __init__(self) -> None:
        super().__init__()
        expert = lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU())  # noqa: E731
        block = lambda: nn.ModuleDict({"experts": nn.ModuleList([expert(), expert()])})  # noqa: E731
        self.layers = nn.ModuleList([block(), block()])
        self.adapters = nn.ModuleList([nn.Sequential(nn.Linear(2, 1)) for _ in range(2)])


def one_layer() -> nn.Module:
    return CausalLM(TransformerConfig(vocab_size=50, n_layers=1, dim=32, n_heads=4, n_experts=2))


@pytest.mark.parametrize(
    ("build", "name", "count"),
    [
        (llama, "LlamaDecoderLayer", 3),
        (mixtral, "MixtralDecoderLayer", 3),
        (gpt2, "GPT2Block", 3),
        (t5, "T5Block", 6),
        (ours, "Block", 3),
        (torch_encoder, "TransformerEncoderLayer", 3),
        (Foreign, "ForeignBlock", 3),
        (Experts, "ModuleDict", 2),
        (one_layer, "Block", 1),
        (lambda: Foreign(depth=1), "ForeignBlock", 1),
    ],
)
def test_blocks_are_found(build: type[nn.Module], name: str, count: int) -> None:
    with torch.device("meta"):
        blocks = find_blocks(build())
    assert [type(block).__name__ for block in blocks] == [name] * count
    assert len(set(blocks)) == count


def test_named_class_wins() -> None:
    module = Foreign()
    assert find_blocks(module, "Sequential") == [module.body]  # outermost ones only
    assert find_blocks(module, ["Linear", "LayerNorm"])[:2] == [
        module.body[0].layers[0],
        module.body[0].layers[1],
    ]


def test_subclasses_of_a_named_class_count() -> None:
    class Special(nn.Linear):
        pass

    module = nn.ModuleList([Special(2, 2), nn.GELU()])
    assert find_blocks(module, "Linear") == [module[0]]


def test_nothing_found() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"no list of blocks.*block_class.*once: Sequential \(2\)"):
        find_blocks(module)
    with pytest.raises(ValueError, match=r"block_class=\['Blok'\] names no part of Sequential"):
        find_blocks(module, "Blok")
    with pytest.raises(TypeError, match=r"is a class; give its name, 'Linear'"):
        find_blocks(module, nn.Linear)  # type: ignore[arg-type]
