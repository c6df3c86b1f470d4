"""Derived values, round trips, presets and every complaint of the config."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from lightning_llm.models import Transformer, TransformerConfig


def test_derived_fields() -> None:
    config = TransformerConfig(dim=512, n_heads=8)
    assert (config.n_kv_heads, config.head_dim, config.hidden_dim) == (8, 64, 1408)  # 8/3: 1365.3
    assert config.attention_out_bias is False
    assert TransformerConfig(mlp="gelu").hidden_dim == 4 * 768
    assert TransformerConfig(dim=384, n_heads=6).hidden_dim == 1024  # 8/3 exactly


@pytest.mark.parametrize("name", TransformerConfig.presets())
def test_round_trip_through_json(name: str) -> None:
    config = TransformerConfig.from_preset(name)
    assert TransformerConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TransformerConfig().dim = 3  # type: ignore[misc]


PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama3-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920,
    "tinyllama-1.1b": 1_100_048_384,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        assert Transformer(TransformerConfig.from_preset(name)).num_parameters() == count


def _hugging_face_config(config: TransformerConfig) -> PreTrainedConfig:
    if config.positions == "learned":
        return GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq_len,
            n_embd=config.dim,
            n_layer=config.n_layers,
            n_head=config.n_heads,
        )
    return (Qwen3Config if config.qk_norm else LlamaConfig)(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_seq_len,
        hidden_size=config.dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tie_embeddings,
    )


@pytest.mark.parametrize("name", ["gpt2-124m", "smollm2-135m", "qwen3-0.6b"])
def test_parameter_counts_are_those_of_transformers(name: str) -> None:
    from transformers import AutoModelForCausalLM

    config = TransformerConfig.from_preset(name)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(_hugging_face_config(config))
        ours = Transformer(config)
    assert ours.num_parameters() == theirs.num_parameters()


@pytest.mark.parametrize(("name", "millions"), [("cpu-1m", 1), ("cpu-10m", 10)])
def test_small_presets_have_the_size_of_their_name(name: str, millions: int) -> None:
    with torch.device("meta"):
        count = Transformer(TransformerConfig.from_preset(name)).num_parameters()
    assert count == pytest.approx(millions * 1e6, rel=0.1)


def test_overrides_come_before_derived_values() -> None:
    config = TransformerConfig.from_preset("gpt2-124m", dim=384, n_heads=6)
    assert (config.head_dim, config.hidden_dim, config.positions) == (64, 1536, "learned")


def test_layer_windows() -> None:
    config = TransformerConfig(sliding_window=8, sliding_window_pattern=3, n_layers=6)
    assert [config.layer_window(layer) for layer in range(6)] == [8, 8, None, 8, 8, None]
    assert TransformerConfig(sliding_window=8).layer_window(2) == 8
    config = TransformerConfig(sliding_window=8, sliding_window_pattern="SSL", n_layers=5)
    assert [config.layer_window(layer) for layer in range(5)] == [8, 8, None, 8, 8]


def test_layer_rotations() -> None:
    config = TransformerConfig(rotary_pattern=4, n_layers=5)
    found = [config.layer_rotation(layer) for layer in range(5)]
    assert found == ["global", "global", "global", None, "global"]
    config = TransformerConfig(sliding_window=8, sliding_window_pattern=3, sliding_rope_theta=1e4)
    assert [config.layer_rotation(layer) for layer in range(3)] == ["local", "local", "global"]
    assert TransformerConfig(positions="alibi").layer_rotation(0) is None


def test_every_second_layer_has_value_embeddings() -> None:
    for n_layers, expected in ((1, [0]), (4, [1, 3]), (5, [0, 2, 4])):
        config = TransformerConfig(n_layers=n_layers, value_embeddings=True)
        layers = [layer for layer in range(n_layers) if config.has_value_embedding(layer)]
        assert layers == expected
    assert not TransformerConfig().has_value_embedding(11)


def test_value_embeddings_are_counted() -> None:
    with torch.device("meta"):
        plain = Transformer(TransformerConfig(n_layers=3, n_kv_heads=4))
        config = TransformerConfig(
            n_layers=3, n_kv_heads=4, value_embeddings=True, residual_scalars=True
        )
        model = Transformer(config)
    more = 2 * (50257 * 4 * 64 + 2) + 3 * 2
    assert model.num_parameters() == plain.num_parameters() + more
    assert model.flops_per_token(1024) == plain.flops_per_token(1024)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'gpt2-125m'; did you mean 'gpt2-124m'"):
        TransformerConfig.from_preset("gpt2-125m")
    with pytest.raises(ValueError, match=r"unknown preset 'zzz'; available: gpt2-124m, .*cpu-10m"):
        TransformerConfig.from_preset("zzz")


def test_unknown_override() -> None:
    with pytest.raises(ValueError, match=r"no field 'n_layer'; did you mean 'n_layers'"):
        TransformerConfig.from_preset("cpu-1m", n_layer=3)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": "768"}, r"dim='768' must be int, not str"),
        ({"n_layers": 2.0}, r"n_layers=2.0 must be int, not float"),
        ({"n_heads": True}, r"n_heads=True must be int, not bool"),
        ({"tie_embeddings": 1}, r"tie_embeddings=1 must be bool, not int"),
        ({"rope_theta": "1e4"}, r"rope_theta='1e4' must be float, not str"),
        ({"rope_scaling": "yarn"}, r"rope_scaling='yarn' must be dict\[str, Any\] \| None"),
        ({"vocab_size": None}, r"vocab_size=None must be int, not NoneType"),
        ({"vocab_size": 0}, r"vocab_size=0 must be positive"),
        ({"logit_softcap": -1.0}, r"logit_softcap=-1.0 must be positive"),
        ({"rope_theta": float("nan")}, r"rope_theta=nan must be a finite number"),
        ({"n_experts": -1}, r"n_experts=-1 must not be negative"),
        ({"dropout": 1.0}, r"dropout=1.0 must be at least 0 and below 1"),
        ({"rotary_fraction": 1.5}, r"rotary_fraction=1.5 must be above 0 and at most 1"),
        ({"mlp": "swish"}, r"mlp='swish' is unknown; use one of swiglu, geglu, gelu, relu2"),
        ({"dim": 770}, r"dim=770 is not a multiple of n_heads=12; use dim=780 or set head_dim"),
        ({"n_kv_heads": 5}, r"n_heads=12 is not a multiple of n_kv_heads=5; use one of 1, 2, 3, 4"),
        ({"head_dim": 63}, r"head_dim=63 times rotary_fraction=1.0 leaves 63 component"),
        ({"rotary_fraction": 0.01}, r"leaves 0 component"),
        (
            {"positions": "sinusoidal", "dim": 45, "n_heads": 3},
            r"dim=45 must be even with positions='sinusoidal'; use 46",
        ),
        (
            {"positions": "alibi", "rope_scaling": LLAMA3},
            r"rope_scaling=.* has no effect with positions='alibi'",
        ),
        (
            {"positions": "learned", "rotary_fraction": 0.5},
            r"rotary_fraction=0.5 has no effect with positions='learned'",
        ),
        ({"shared_norm": True}, r"shared_norm=True needs parallel_residual=True"),
        ({"sliding_window_pattern": 2}, r"sliding_window_pattern=2 needs sliding_window"),
        (
            {"sliding_window_pattern": 1, "sliding_window": 8},
            r"sliding_window_pattern=1 leaves no layer with a window",
        ),
        (
            {"sliding_window_pattern": "SxL", "sliding_window": 8},
            r"sliding_window_pattern='SxL' must be a number or letters S \(window\) and L",
        ),
        ({"sliding_window_pattern": ""}, r"sliding_window_pattern='' must be a number or letters"),
        (
            {"sliding_window_pattern": "LL", "sliding_window": 8},
            r"sliding_window_pattern='LL' leaves no layer with a window",
        ),
        (
            {"sliding_window_pattern": 2.5},
            r"sliding_window_pattern=2.5 must be int \| str \| None, not float",
        ),
        (
            {"qk_norm": True, "attention_score": "cosine"},
            r"qk_norm=True repeats what attention_score='cosine' does",
        ),
        (
            {"attention_score": "additive", "attention_softcap": 5.0},
            r"attention_softcap=5.0 is not available with attention_score='additive'",
        ),
        (
            {"attention_score": "cosine", "attention_scale": 0.1},
            r"attention_scale=0.1 is not available with attention_score='cosine'",
        ),
        (
            {"qk_norm_scope": "all_heads"},
            r"qk_norm_scope='all_heads' has no effect with qk_norm=False; set qk_norm=True",
        ),
        (
            {"qk_norm_scope": "all", "qk_norm": True},
            r"qk_norm_scope='all' is unknown; use one of head, all_heads",
        ),
        (
            {"norm_placement": "both", "parallel_residual": True},
            r"norm_placement='both' is not available with parallel_residual=True",
        ),
        ({"norm_placement": "after"}, r"'after' is unknown; use one of pre, post, both"),
        ({"sliding_rope_theta": 1e4}, r"sliding_rope_theta=10000.0 needs sliding_window"),
        (
            {"positions": "alibi", "rotary_pattern": "RRN"},
            r"rotary_pattern='RRN' has no effect with positions='alibi'",
        ),
        ({"rotary_pattern": "RS"}, r"rotary_pattern='RS' must be a number or letters R \(rotated"),
        ({"rotary_pattern": 1}, r"rotary_pattern=1 leaves no layer rotated; use positions='none'"),
        ({"rotary_pattern": "NN"}, r"rotary_pattern='NN' leaves no layer rotated"),
        (
            {"n_experts": 2, "n_experts_per_token": 3},
            r"n_experts_per_token=3 exceeds n_experts=2; use at most 2",
        ),
        ({"n_experts": 2, "mlp_bias": True}, r"mlp_bias=True is not available with n_experts=2"),
        ({"rope_scaling": {}}, r"rope_scaling\['rope_type'\]=None is unknown; use one of default,"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            r"\['rope_type'\]='longrope' is unknown; use one of default, linear, llama3, yarn",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, r"type 'linear' lacks 'factor'"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "facter": 1.0}},
            r"type 'linear' has no key 'facter'; did you mean 'factor'\?",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 1.0}},
            r"type 'linear' has no key 'beta_fast'; it takes factor",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
            r"rope_scaling\['factor'\]='2' must be a positive number",
        ),
        (
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            r"rope_scaling\['low_freq_factor'\]=1.0 must be below high_freq_factor=1.0",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 8,
                    "truncate": 1,
                }
            },
            r"rope_scaling\['truncate'\]=1 must be true or false",
        ),
    ],
)
def test_complaints(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**fields)


def test_all_problems_in_one_error() -> None:
    with pytest.raises(ValueError, match=r"has 6 problem\(s\)") as error:
        TransformerConfig(
            dim="768",  # wrong type: n_heads=5 is not compared with it
            n_heads=5,
            n_kv_heads=2,
            mlp="swish",
            dropout=2,
            rope_scaling={"rope_type": "linear"},
            shared_norm=True,
        )
    text = str(error.value)
    for part in ("dim='768'", "n_kv_heads=2", "mlp=", "dropout=2", "'factor'", "shared_norm"):
        assert part in text
    assert "multiple of n_heads=5" not in text


def test_one_broken_field_hides_what_depends_on_it() -> None:
    with pytest.raises(ValueError, match=r"has 1 problem\(s\)"):
        TransformerConfig(n_heads=0)
