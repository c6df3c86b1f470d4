"""Floating-point operations of a ``transformers`` model, counted from its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_llm.interop.hf.text_config import attention_widths, chosen_experts


def network_flops_per_token(network: nn.Module, seq_len: int, *, causal: bool = False) -> int:
    """Operations of forward and backward pass per token.

    6 per weight that a token is multiplied with (4 where it is frozen: it has no gradient of its
    own) and ``12 * heads * head width * seq_len`` for each layer with attention, as in
    `lightning_llm.models.flops`. Sliding windows are counted as full attention. Of a model that
    also sees or hears, the part that text goes through is counted.

    Args:
        network: From ``AutoModelForCausalLM``.
        seq_len: Tokens per sequence.
        causal: Count only the keys a query sees on average, half of them.
    """
    model: Any = network
    embeddings = {
        id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)
    }
    head = model.get_output_embeddings().weight
    chosen = chosen_experts(model.config)
    total = 0.0
    for parameter in _of_text(model, head):
        if parameter.ndim < 2 or (id(parameter) in embeddings and parameter is not head):
            continue
        size = float(parameter.numel())
        if parameter.ndim == 3 and chosen:  # experts, stacked
            size *= min(1.0, chosen / parameter.shape[0])
        total += (6 if parameter.requires_grad else 4) * size
    attention = 12 * sum(attention_widths(model.config)) * seq_len
    return round(total + (attention / 2 if causal else attention))


def _of_text(model: Any, head: nn.Parameter) -> list[nn.Parameter]:
    """The decoder's weights and the head's, each once."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    found = {id(parameter): parameter for parameter in decoder.parameters()}
    found.setdefault(id(head), head)
    return list(found.values())
