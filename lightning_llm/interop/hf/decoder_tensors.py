"""Rows of the weight tables that Llama's layout is behind: Qwen, Gemma, OLMo 2 and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lightning_llm.interop.hf.layout import (
    TensorMap,
    per_expert,
    same,
    separate_qkv,
    zeros_in_theirs,
)
from lightning_llm.models import TransformerConfig


@dataclass(frozen=True)
class ExpertNames:
    """Where an architecture keeps its mixture of experts, under ``model.layers.{i}``."""

    block: str
    gate: str
    up: str
    down: str


# Our norm in a block -> theirs in a layer.
_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def decoder_tensors(
    config: TransformerConfig,
    *,
    norms: Mapping[str, str] = _NORMS,
    norm: Callable[[str, str], TensorMap] = same,
    experts: ExpertNames | None = None,
    biases_together: bool = False,
) -> Iterator[TensorMap]:
    """The weight table of Llama and of architectures that name their weights as it does.

    Args:
        config: What to list the weights of.
        norms: Names of a block's norms, ours -> theirs.
        norm: The row of a norm's weight.
        experts: Names of a mixture of experts.
        biases_together: Attention's output has a bias where query, key and value have one; zeros
            if ours has none.
    """
    yield same("embedding.weight", "model.embed_tokens.weight")
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        for our_name, their_name in norms.items():
            yield norm(f"{ours}.{our_name}.weight", f"{theirs}.{their_name}.weight")
        yield from _attention(config, f"{ours}.attention", f"{theirs}.self_attn", norm)
        if biases_together and config.attention_bias and not config.attention_out_bias:
            yield zeros_in_theirs(f"{theirs}.self_attn.o_proj.bias", config.dim)
        if experts is not None:
            yield from _experts(config, f"{ours}.mlp", theirs, experts)
        else:
            yield from _mlp(config, f"{ours}.mlp", f"{theirs}.mlp")
    yield norm("final_norm.weight", "model.norm.weight")
    if not config.tie_embeddings:
        yield same("head.weight", "lm_head.weight")


def _attention(
    config: TransformerConfig, ours: str, theirs: str, norm: Callable[[str, str], TensorMap]
) -> Iterator[TensorMap]:
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    for kind in ("weight", "bias") if config.attention_bias else ("weight",):
        names = (f"{theirs}.q_proj.{kind}", f"{theirs}.k_proj.{kind}", f"{theirs}.v_proj.{kind}")
        yield separate_qkv(f"{ours}.qkv.{kind}", names, config.n_kv_heads, config.head_dim)
    yield same(f"{ours}.out.weight", f"{theirs}.o_proj.weight")
    if config.attention_out_bias:
        yield same(f"{ours}.out.bias", f"{theirs}.o_proj.bias")
    if config.qk_norm:
        yield norm(f"{ours}.q_norm.weight", f"{theirs}.q_norm.weight")
        yield norm(f"{ours}.k_norm.weight", f"{theirs}.k_norm.weight")


def _mlp(config: TransformerConfig, ours: str, theirs: str) -> Iterator[TensorMap]:
    for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
        for name in ("gate", "up", "down"):
            yield same(f"{ours}.{name}.{kind}", f"{theirs}.{name}_proj.{kind}")


def _experts(
    config: TransformerConfig, ours: str, theirs: str, names: ExpertNames
) -> Iterator[TensorMap]:
    yield same(f"{ours}.router.weight", f"{theirs}.{names.block}.gate.weight")
    for name in ("gate", "up", "down"):
        pattern = f"{theirs}.{names.block}.experts.{{expert}}.{getattr(names, name)}.weight"
        yield per_expert(f"{ours}.experts.{name}", pattern, config.n_experts)
