"""Architectures of transformers, written as configurations of ours: equal logits and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from variants import inputs

from lightning_llm.models import Transformer, TransformerConfig

SIZES = {"vocab_size": 23, "max_seq_len": 16, "n_layers": 4, "dim": 16, "n_heads": 4}
GROUPED = {**SIZES, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 24}
THEIR_SIZES = {
    "vocab_size": 23,
    "max_position_embeddings": 16,
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
WINDOWS = ["sliding_attention", "full_attention"] * 2


def gemma2() -> tuple[TransformerConfig, Any]:
    """Scores are scaled by 1 / sqrt(query_pre_attn_scalar) and capped; norms on both sides."""
    ours = TransformerConfig(
        **GROUPED,
        mlp="geglu",
        norm_eps=1e-6,
        norm_placement="both",
        attention_scale=5**-0.5,
        attention_softcap=2.0,
        logit_softcap=3.0,
        embedding_scale=4.0,
        sliding_window=3,
        sliding_window_pattern=2,
    )
    theirs = transformers.Gemma2Config(
        **THEIR_SIZES,
        query_pre_attn_scalar=5,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        sliding_window=3,
        layer_types=WINDOWS,
    )
    return ours, theirs


def gemma3() -> tuple[TransformerConfig, Any]:
    """Norms of heads; layers with a window have a RoPE of their own, unscaled."""
    ours = TransformerConfig(
        **GROUPED,
        mlp="geglu",
        norm_eps=1e-6,
        norm_placement="both",
        qk_norm=True,
        attention_scale=5**-0.5,
        embedding_scale=4.0,
        sliding_window=3,
        sliding_window_pattern="SL",
        rope_theta=500.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_rope_theta=50.0,
    )
    theirs = transformers.Gemma3TextConfig(
        **THEIR_SIZES,
        query_pre_attn_scalar=5,
        sliding_window=3,
        layer_types=WINDOWS,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    )
    return ours, theirs


def olmo2() -> tuple[TransformerConfig, Any]:
    """Norms after the branches, and over the queries of all heads together."""
    sizes = {**SIZES, "n_kv_heads": 2, "hidden_dim": 24, "tie_embeddings": False}
    ours = TransformerConfig(
        **sizes, norm_placement="post", qk_norm=True, qk_norm_scope="all_heads"
    )
    theirs = {name: value for name, value in THEIR_SIZES.items() if name != "head_dim"}
    return ours, transformers.Olmo2Config(**theirs, tie_word_embeddings=False)


def smollm3() -> tuple[TransformerConfig, Any]:
    """Every second layer has no positions."""
    ours = TransformerConfig(**GROUPED, norm_eps=1e-6, rotary_pattern=2, rope_theta=100.0)
    theirs = transformers.SmolLM3Config(
        **THEIR_SIZES,
        no_rope_layer_interval=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    return ours, theirs


def pythia() -> tuple[TransformerConfig, Any]:
    """The exact GELU."""
    ours = TransformerConfig(
        **{**SIZES, "hidden_dim": 24, "tie_embeddings": False},
        parallel_residual=True,
        norm="layernorm",
        mlp="gelu_erf",
        mlp_bias=True,
        attention_bias=True,
        rotary_fraction=0.5,
    )
    taken = {"num_key_value_heads", "head_dim"}
    theirs = transformers.GPTNeoXConfig(
        **{name: value for name, value in THEIR_SIZES.items() if name not in taken},
        hidden_act="gelu",
        rotary_pct=0.5,
        tie_word_embeddings=False,
    )
    return ours, theirs


def phi3() -> tuple[TransformerConfig, Any]:
    """Two matrices hold query, key and value, and gate and up."""
    ours = TransformerConfig(
        **{**SIZES, "n_kv_heads": 2, "hidden_dim": 24, "tie_embeddings": False},
        rotary_fraction=0.5,
        sliding_window=3,
    )
    theirs = transformers.Phi3Config(
        **{name: value for name, value in THEIR_SIZES.items() if name != "head_dim"},
        partial_rotary_factor=0.5,
        sliding_window=3,
        tie_word_embeddings=False,
    )
    return ours, theirs


# Our norm -> theirs, under a layer.
SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
AFTER = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
BEFORE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
CASES: dict[str, tuple[Callable[[], tuple[TransformerConfig, Any]], dict[str, str]]] = {
    "gemma2": (gemma2, SANDWICH),
    "gemma3": (gemma3, SANDWICH),
    "olmo2": (olmo2, AFTER),
    "smollm3": (smollm3, BEFORE),
    "pythia": (pythia, BEFORE),
    "phi3": (phi3, BEFORE),
}


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[Transformer, nn.Module]:
    """Two models with the same random weights."""
    configs, norms = CASES[request.param]
    our_config, their_config = configs()
    theirs = transformers.AutoModelForCausalLM.from_config(their_config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    ours = Transformer(our_config).eval()
    ours.load_state_dict(translated(our_config, theirs, norms))
    return ours, theirs


def translated(config: TransformerConfig, model: nn.Module, norms: dict[str, str]) -> Any:
    """Their weights under our names."""
    body = model.base_model
    layers = body.layers
    # Gemma multiplies with 1 + weight.
    extra = 1.0 if type(model).__name__.startswith("Gemma") else 0.0
    embedding = body.embed_in if hasattr(body, "embed_in") else body.embed_tokens
    final = body.final_layer_norm if hasattr(body, "final_layer_norm") else body.norm
    weights = {"embedding.weight": embedding.weight}
    if not config.tie_embeddings:
        weights["head.weight"] = model.get_output_embeddings().weight
    add_norm(weights, "final_norm", final, extra)
    for i, layer in enumerate(layers):
        for our_name, their_name in norms.items():
            add_norm(weights, f"blocks.{i}.{our_name}", getattr(layer, their_name), extra)
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
        if config.qk_norm:
            add_norm(weights, f"blocks.{i}.attention.q_norm", attention.q_norm, extra)
            add_norm(weights, f"blocks.{i}.attention.k_norm", attention.k_norm, extra)
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            qkv = grouped_rows(config, attention, kind)
            weights[f"blocks.{i}.attention.qkv.{kind}"] = qkv
        add_linear(weights, f"blocks.{i}.attention.out", last_projection(attention))
        add_feed_forward(weights, f"blocks.{i}.mlp", layer.mlp)
    return weights


def add_norm(weights: dict[str, Tensor], name: str, norm: nn.Module, extra: float) -> None:
    weights[f"{name}.weight"] = norm.weight + extra
    if getattr(norm, "bias", None) is not None:
        weights[f"{name}.bias"] = norm.bias


def add_linear(weights: dict[str, Tensor], name: str, linear: nn.Module) -> None:
    weights[f"{name}.weight"] = linear.weight
    if linear.bias is not None:
        weights[f"{name}.bias"] = linear.bias


def last_projection(attention: nn.Module) -> nn.Module:
    return attention.dense if hasattr(attention, "dense") else attention.o_proj


def grouped_rows(config: TransformerConfig, attention: nn.Module, kind: str) -> Tensor:
    """For each key head: its query heads, itself, its value head."""
    if hasattr(attention, "query_key_value"):  # so it is there, one query head to each key head
        return getattr(attention.query_key_value, kind)
    width, groups = config.head_dim, config.n_kv_heads
    if hasattr(attention, "qkv_proj"):
        sizes = (config.n_heads * width, groups * width, groups * width)
        parts = getattr(attention.qkv_proj, kind).split(sizes)
    else:
        parts = [getattr(getattr(attention, f"{x}_proj"), kind) for x in "qkv"]
    by_group = [part.unflatten(0, (groups, -1)) for part in parts]
    return torch.cat(by_group, dim=1).flatten(0, 1)


def add_feed_forward(weights: dict[str, Tensor], name: str, mlp: nn.Module) -> None:
    if hasattr(mlp, "dense_h_to_4h"):
        add_linear(weights, f"{name}.up", mlp.dense_h_to_4h)
        add_linear(weights, f"{name}.down", mlp.dense_4h_to_h)
        return
    add_linear(weights, f"{name}.down", mlp.down_proj)
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj.weight.chunk(2)
    else:
        gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
    weights |= {f"{name}.gate.weight": gate, f"{name}.up.weight": up}


def test_logits_are_those_of_transformers(pair: tuple[Transformer, nn.Module]) -> None:
    ours, theirs = pair
    ids = inputs()
    with torch.no_grad():
        logits = ours(ids)
        torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.1


def test_gradients_are_those_of_transformers(pair: tuple[Transformer, nn.Module]) -> None:
    ours, theirs = pair
    ids = inputs()
    for logits in (ours(ids), theirs(ids).logits):
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    expected = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(ours.embedding.weight.grad, expected, atol=1e-4, rtol=1e-4)


# Fields that can be set back without another set of weights.
PLAIN = {
    "attention_scale": None,
    "attention_softcap": None,
    "sliding_rope_theta": None,
    "rotary_pattern": None,
}


def test_tolerance_sees_every_field(pair: tuple[Transformer, nn.Module]) -> None:
    ours, theirs = pair
    ids = inputs()
    changes = [{name: value} for name, value in PLAIN.items() if getattr(ours.config, name)]
    if ours.config.mlp == "gelu_erf":
        changes.append({"mlp": "gelu"})
    for change in changes:
        model = Transformer(replace(ours.config, **change)).eval()
        model.load_state_dict(ours.state_dict())
        with torch.no_grad():
            assert (model(ids) - theirs(ids).logits).abs().max() > 2e-4, change
