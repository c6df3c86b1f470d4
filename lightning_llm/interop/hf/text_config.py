"""What the configurations of ``transformers`` say under several names, read under one."""

from __future__ import annotations

from typing import Any

from torch import nn

_LONGEST = (
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_len",
)
_CHOSEN_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
# Of layer_types and the like: layers that do not multiply queries with keys.
_NO_ATTENTION = ("mamba", "conv", "linear", "recurrent", "mlp", "moe", "lightning", "ssm")
_KINDS = ("layer_types", "layers_block_type", "block_types")


def longest_sequence(network: Any) -> int | None:
    """How many positions a network has; None where there is no such bound.

    Embeddings of positions that start behind the padding id (RoBERTa) hold that many fewer.
    """
    config = network.config.get_text_config()
    longest = _whole_number(config, _LONGEST)
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            if module.padding_idx is not None:
                behind = module.num_embeddings - module.padding_idx - 1
                longest = behind if longest is None else min(longest, behind)
            break
    return longest


def chosen_experts(config: Any) -> int | None:
    """How many experts a token goes to; None without experts."""
    return _whole_number(config.get_text_config(), _CHOSEN_EXPERTS)


def shared_row(config: Any) -> int | None:
    """From how many tokens on attention treats a row as one, documents or not; None for never.

    Sparse attention chooses a number of keys in the row (DeepSeek V3.2), chunked attention cuts the
    row (Llama 4).
    """
    config = config.get_text_config()
    found = [_whole_number(config, (name,)) for name in ("index_topk", "attention_chunk_size")]
    return min((value for value in found if value is not None), default=None)


def attention_widths(config: Any) -> list[int]:
    """Of each layer with attention: query heads times their width."""
    config = config.get_text_config()
    count = _whole_number(config, ("num_hidden_layers",)) or 0
    kinds = next((kinds for name in _KINDS if (kinds := getattr(config, name, None))), None)
    if kinds is None or len(kinds) != count:
        kinds = ["attention"] * count
    return [
        _attention_width(_of_layer(config, layer))
        for layer, kind in enumerate(kinds)
        if not any(mark in str(kind) for mark in _NO_ATTENTION)
    ]


def _of_layer(config: Any, layer: int) -> Any:
    """The configuration of one layer, where layers have their own (Gemma 4)."""
    own = getattr(config, "per_layer_config", None)
    try:
        return own[layer] if own else config
    except (LookupError, TypeError, ValueError):
        return config


def _attention_width(config: Any) -> int:
    heads = _whole_number(config, ("num_attention_heads", "n_head", "num_heads"))
    width = _whole_number(config, ("hidden_size", "d_model"))
    if heads is None or width is None:
        return 0
    latent = [_whole_number(config, (name,)) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    if None not in latent:  # multi-head latent attention: scores and values of different widths
        values = _whole_number(config, ("v_head_dim",)) or latent[0]
        return heads * (sum(latent) + values) // 2  # type: ignore[arg-type,operator]
    return heads * (_whole_number(config, ("head_dim",)) or width // heads)


def _whole_number(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of several fields that is a positive whole number."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except ValueError:  # it differs by layer
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
