"""Rotation frequencies and ALiBi slopes against transformers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from variants import build, inputs

from lightning_llm.models import TransformerConfig
from lightning_llm.models.masks import MaskBuilder
from lightning_llm.models.positions import alibi_slopes, rotary_tables
from lightning_llm.models.rope_scaling import rope_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048,
    },
    "yarn": YARN,
    "yarn_shrinking": {**YARN, "factor": 0.5},
    "yarn_attention_factor": {**YARN, "attention_factor": 0.9},
    "yarn_betas": {**YARN, "beta_fast": 20, "beta_slow": 2, "truncate": False},
    "yarn_mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
    "yarn_mscale_alone": {**YARN, "mscale": 0.7},
    "yarn_step": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
}


def hugging_face(scaling: dict[str, object], theta: float) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=8192,
        rope_parameters={**scaling, "rope_theta": theta},
    )


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str, theta: float) -> None:
    scaling = SCALINGS[name]
    frequencies, factor = rope_frequencies(64, theta, scaling)
    config = hugging_face(scaling, theta)
    kind = str(scaling["rope_type"])
    if kind == "default":
        expected, expected_factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, expected_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        unscaled, _ = rope_frequencies(64, theta, None)
        assert not torch.allclose(frequencies, unscaled, rtol=1e-2)
    torch.testing.assert_close(frequencies, expected, atol=0, rtol=1e-6)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_of_transformers(name: str) -> None:
    config = TransformerConfig(
        dim=256, n_heads=4, max_seq_len=8192, rope_theta=500000.0, rope_scaling=SCALINGS[name]
    )
    theirs = LlamaRotaryEmbedding(hugging_face(SCALINGS[name], 500000.0))
    positions = torch.tensor([[0, 1, 17, 2047, 8191]])
    cos, sin = theirs(torch.zeros(1), positions)
    table = rotary_tables(config)["global"]
    for ours in (table.lookup(positions), [half[positions] for half in table.slice(0, 8192, CPU)]):
        torch.testing.assert_close(ours[0], cos[..., :32], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours[1], sin[..., :32], atol=1e-6, rtol=0)


CPU = torch.device("cpu")


def test_tables_are_float32_under_any_default() -> None:
    config = TransformerConfig(dim=64, n_heads=4, max_seq_len=128)
    cos, _ = rotary_tables(config)["global"].slice(0, 128, CPU)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        table = rotary_tables(config)["global"]
    low, _ = table.slice(0, 128, CPU)
    assert low.dtype == torch.float32
    assert torch.equal(low, cos)


def test_tables_grow_and_are_kept() -> None:
    table = rotary_tables(TransformerConfig(max_seq_len=1000))["global"]
    short, _ = table.slice(3, 5, CPU)
    again, _ = table.slice(3, 5, CPU)
    assert short.data_ptr() == again.data_ptr()
    long, _ = table.slice(0, 1000, CPU)
    assert long.shape == (1000, 32)
    torch.testing.assert_close(long[3:8], short, atol=0, rtol=0)


def test_tables_stay_out_of_the_state_dict_and_follow_casts() -> None:
    model = build()
    ids = inputs()
    expected = model(ids)
    assert not list(model.buffers())
    there_and_back = copy.deepcopy(model).bfloat16().float()
    there_and_back.load_state_dict(model.state_dict())
    assert torch.equal(there_and_back(ids), expected)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 25, 32])
def test_alibi_slopes_are_those_of_transformers(n_heads: int) -> None:
    alibi = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), n_heads, torch.float32)
    expected = alibi[:, 0, 1]  # slope times key position 1
    torch.testing.assert_close(torch.tensor(alibi_slopes(n_heads)), expected, atol=0, rtol=1e-6)


def mask(builder: MaskBuilder, n_queries: int, n_keys: int, **options: object) -> torch.Tensor:
    arguments = {"window": None, "key_documents": None, "dtype": torch.float32, "device": CPU}
    return builder(n_queries, n_keys, **{**arguments, **options})


def test_masks_come_only_where_asked_for() -> None:
    builder = MaskBuilder(TransformerConfig())
    assert mask(builder, 8, 8) is None
    assert mask(builder, 1, 8) is None
    assert mask(builder, 8, 8, window=8) is None
    assert mask(builder, 8, 8, window=7) is not None
    assert mask(builder, 2, 8) is not None  # neither all tokens are new nor is there one
    assert mask(builder, 8, 8, key_documents=torch.zeros(1, 8)) is not None
    assert mask(MaskBuilder(TransformerConfig(positions="alibi")), 8, 8) is not None


def test_constant_masks_are_built_once() -> None:
    builder = MaskBuilder(TransformerConfig())
    assert mask(builder, 8, 8, window=3) is mask(builder, 8, 8, window=3)
    assert mask(builder, 8, 8, window=3) is not mask(builder, 8, 8, window=4)
    for length in range(10, 40):
        mask(builder, length, length, window=3)
    assert len(builder._cache) <= 8


def test_no_mask_row_is_empty() -> None:
    documents = torch.tensor([[-1, -1, 0, 1, 1, 7, 0, 0]])  # also documents of one token
    builder = MaskBuilder(TransformerConfig())
    for n_queries in (1, 3, 8):
        built = mask(builder, n_queries, 8, window=2, key_documents=documents)
        assert built.diagonal(8 - n_queries, dim1=-2, dim2=-1).eq(0).all()


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, {"sliding_window": 3}, {"positions": "alibi"}])
def test_one_mask_is_shared_by_the_layers(
    variant: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(n_layers=4, **variant)
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments: torch.Tensor, attn_mask: torch.Tensor | None, **options: object):
        masks.append(attn_mask)
        return attend(*arguments, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model(inputs())
    assert len({id(m) for m in masks}) == 1
    assert (masks[0] is None) == (not variant)
    masks.clear()
    model(inputs(), document_ids=torch.zeros(2, 10, dtype=torch.long))
    assert masks[0] is not None
    assert len({id(m) for m in masks}) == 1
