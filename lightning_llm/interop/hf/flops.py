"""Floating-point operations of a ``transformers`` model, counted from its weights."""

from __future__ import annotations

from typing import Any

from torch import nn


def network_flops_per_token(network: nn.Module, seq_len: int, *, causal: bool = False) -> int:
    """Operations of forward and backward pass per token.

    6 per weight that a token is multiplied with (4 where it is frozen: it has no gradient of its
    own) and ``12 * layers * heads * head width * seq_len`` for attention, as in
    `lightning_llm.models.flops`. Sliding windows are counted as full attention.

    Args:
        network: From ``AutoModelForCausalLM``.
        seq_len: Tokens per sequence.
        causal: Count only the keys a query sees on average, half of them.
    """
    model: Any = network
    config = model.config.get_text_config()
    embeddings = {
        id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)
    }
    head = model.get_output_embeddings().weight
    chosen = getattr(config, "num_experts_per_tok", None)
    total = 0.0
    for parameter in network.parameters():
        if parameter.ndim < 2 or (id(parameter) in embeddings and parameter is not head):
            continue
        size = float(parameter.numel())
        if parameter.ndim == 3 and chosen:  # experts, stacked
            size *= chosen / parameter.shape[0]
        total += (6 if parameter.requires_grad else 4) * size
    heads = getattr(config, "num_attention_heads", 0)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    attention = 12 * config.num_hidden_layers * heads * head_dim * seq_len
    return round(total + (attention / 2 if causal else attention))
