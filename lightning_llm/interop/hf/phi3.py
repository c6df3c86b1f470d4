"""Phi-3 and Phi-4: Llama's layers with query, key, value and gate, up as one matrix each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lightning_llm.interop.hf.layout import TensorMap, stacked_qkv, stacked_rows
from lightning_llm.interop.hf.llama import (
    ACTIVATIONS,
    MISTRAL,
    activation_from_hf,
)
from lightning_llm.interop.hf.rope import partial_rope_from_hf, partial_rope_to_hf
from lightning_llm.models import TransformerConfig


def _tensors(config: TransformerConfig) -> Iterator[TensorMap]:
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    for row in MISTRAL.tensors(config):
        ours = row.ours[0]
        theirs = row.theirs[0]
        if ours.endswith(".qkv.weight"):
            fused = theirs.replace(".q_proj.", ".qkv_proj.")
            yield stacked_qkv(ours, fused, config.n_kv_heads, config.head_dim)
        elif ours.endswith(".gate.weight"):
            fused = theirs.replace(".gate_proj.", ".gate_up_proj.")
            yield stacked_rows((ours, ours.replace(".gate.", ".up.")), fused)
        elif not ours.endswith(".up.weight"):
            yield row


def _to_hf(config: TransformerConfig) -> dict[str, Any]:
    assert config.head_dim is not None
    own = config.head_dim * config.n_heads != config.dim
    return {
        **({"head_dim": config.head_dim} if own else {}),
        "hidden_act": ACTIVATIONS[config.mlp],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attention_dropout": config.dropout,
        **partial_rope_to_hf(config),
    }


def _from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        # Not declared by its configuration, and read by its model where a file has it.
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "norm": "rmsnorm",
        "mlp": activation_from_hf(hf),
        "dropout": hf["resid_pdrop"],
        **partial_rope_from_hf(hf),
    }


def _limits(config: TransformerConfig) -> list[str]:
    if config.dim % config.n_heads == 0:
        return []
    return [f"n_heads={config.n_heads} (phi3 needs it to divide dim={config.dim})"]


PHI3 = replace(
    MISTRAL,
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    requires={
        **{name: values for name, values in MISTRAL.requires.items() if name != "rotary_fraction"},
        "rope_scaling": (None,),
    },
    converts=frozenset({"head_dim", "rope_theta", "rotary_fraction", "dropout"}),
    to_hf=_to_hf,
    from_hf=_from_hf,
    tensors=_tensors,
    limits=_limits,
    # The first has no effect without the scaling that is refused.
    neutral=frozenset({"original_max_position_embeddings", "embd_pdrop"}),
    converted=frozenset({"hidden_act", "resid_pdrop", "rope_parameters"}),
)
