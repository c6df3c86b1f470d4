"""Which parameter is of which kind, in our own, foreign and Hugging Face modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.optim import parameter_groups


def kinds(module: nn.Module) -> dict[str, str]:
    """Kind by parameter name; also checks what holds for every module."""
    groups = parameter_groups(module)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, str] = {}
    for group in groups:
        decayed = group["kind"] in ("matrix", "head")
        assert group.get("weight_decay", "default") == ("default" if decayed else 0.0)
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = group["kind"]
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    assert sorted(found) == sorted(trainable)
    torch.optim.AdamW(groups)  # a shared or missing parameter would raise
    return found


class OwnRMSNorm(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(*shape))


class NormalizedProjection(nn.Linear):
    """Has "norm" in its name and is a matrix all the same."""


class ShardedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(5, 4))


class Foreign(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.experts = nn.Parameter(torch.ones(2, 4, 4))
        self.tokens = nn.Embedding(9, 4)
        self.positions = ShardedEmbedding()
        self.inner = NormalizedProjection(4, 4)
        self.norm = nn.LayerNorm((2, 4))
        self.own_norm = OwnRMSNorm(1, 4)
        self.output = nn.Linear(4, 9, bias=True)
        if tied:
            self.output.weight = self.tokens.weight

    @property
    def head_weight(self) -> Tensor:
        return self.output.weight


def test_a_foreign_module() -> None:
    assert kinds(Foreign(tied=False)) == {
        "gain": "vector",
        "experts": "matrix",
        "tokens.weight": "embedding",
        "positions.table": "embedding",
        "inner.weight": "matrix",
        "inner.bias": "vector",
        "norm.weight": "vector",
        "norm.bias": "vector",
        "own_norm.scale": "vector",
        "output.weight": "head",
        "output.bias": "vector",
    }


def test_a_tied_head_is_an_embedding() -> None:
    found = kinds(Foreign(tied=True))
    assert found["tokens.weight"] == "embedding"
    assert "output.weight" not in found


def test_a_head_tied_the_other_way_round() -> None:
    model = nn.Sequential(nn.Linear(4, 9, bias=False), nn.Embedding(9, 4))
    model[1].weight = model[0].weight
    assert kinds(model) == {"0.weight": "embedding"}


def test_frozen_parameters_are_left_out() -> None:
    model = Foreign(tied=False)
    model.tokens.requires_grad_(False)
    assert "tokens.weight" not in kinds(model)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="Linear has no parameter with requires_grad=True"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


def test_order_is_that_of_registration() -> None:
    model = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(5)])
    (group,) = parameter_groups(model)
    for got, layer in zip(group["params"], model, strict=True):
        assert got is layer.weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("experts", [0, 2])
def test_our_transformer(tied: bool, experts: int) -> None:
    config = TransformerConfig(
        vocab_size=32,
        n_layers=1,
        dim=16,
        n_heads=2,
        max_seq_len=8,
        tie_embeddings=tied,
        n_experts=experts,
        qk_norm=True,
        positions="learned",
        attention_bias=True,
    )
    found = kinds(Transformer(config))
    assert found["embedding.weight"] == found["position_embedding.weight"] == "embedding"
    assert found.get("head.weight") == (None if tied else "head")
    assert found["blocks.0.attention.qkv.weight"] == "matrix"
    assert found["blocks.0.attention.qkv.bias"] == "vector"
    assert found["blocks.0.attention.q_norm.weight"] == "vector"
    assert found["final_norm.weight"] == "vector"
    for name, kind in found.items():
        if ".mlp." in name:
            assert kind == "matrix"


SMALL = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 40, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "GPT2",
            {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40},
            {
                "transformer.wte.weight": "embedding",
                "transformer.wpe.weight": "embedding",
                "transformer.h.0.attn.c_attn.weight": "matrix",
                "transformer.h.0.ln_1.weight": "vector",
            },
        ),
        (
            "Llama",
            SMALL | {"num_attention_heads": 2, "num_key_value_heads": 1},
            {
                "model.embed_tokens.weight": "embedding",
                "model.layers.0.self_attn.q_proj.weight": "matrix",
                "model.layers.0.input_layernorm.weight": "vector",
                "lm_head.weight": "head",
            },
        ),
        (
            "Gemma3Text",
            SMALL | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
            {
                "model.embed_tokens.weight": "embedding",
                "model.layers.0.self_attn.q_norm.weight": "vector",
            },
        ),
    ],
)
def test_hugging_face_models(name: str, options: dict[str, Any], expected: dict[str, str]) -> None:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    found = kinds(getattr(transformers, name.removesuffix("Text") + head)(config))
    assert expected.items() <= found.items()
    assert not [name for name, kind in found.items() if "norm" in name and kind != "vector"]


def test_value_embeddings_and_learned_scalars_are_no_matrices() -> None:
    config = TransformerConfig(
        vocab_size=11, n_layers=2, dim=8, n_heads=2, value_embeddings=True, residual_scalars=True
    )
    found = kinds(Transformer(config))
    assert found["value_embeddings.1.weight"] == "embedding"
    assert found["blocks.1.attention.value_mix.weight"] == "vector"
    assert found["blocks.0.residual_mix.weight"] == "vector"
