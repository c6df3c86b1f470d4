"""Small models, one for every option of the config."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_llm.models import Transformer, TransformerConfig

BASE = {
    "vocab_size": 23,
    "max_seq_len": 16,
    "n_layers": 2,
    "dim": 16,
    "n_heads": 4,
    "hidden_dim": 24,
    "init_std": 0.3,  # far from linear, so that a mistake anywhere is seen in the logits
}
VARIANTS = {
    "llama": {"n_kv_heads": 2},
    "multi_query": {"n_kv_heads": 1},
    "gpt2": {
        "positions": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "mlp_bias": True,
        "attention_bias": True,
    },
    "qwen3": {"n_kv_heads": 2, "head_dim": 8, "qk_norm": True},
    "qwen2": {"n_kv_heads": 2, "attention_bias": True, "attention_out_bias": False},
    "sinusoidal": {"positions": "sinusoidal", "embedding_scale": 4.0},
    "no_positions": {"positions": "none", "mlp": "relu2"},
    "alibi": {"positions": "alibi", "n_kv_heads": 2},
    "window": {"sliding_window": 3},
    "window_pattern": {"sliding_window": 3, "sliding_window_pattern": 2},
    "alibi_window": {"positions": "alibi", "sliding_window": 3},
    "cosine": {"attention_score": "cosine", "n_kv_heads": 2},
    "additive": {"attention_score": "additive", "n_kv_heads": 2},
    "additive_alibi": {"attention_score": "additive", "positions": "alibi"},
    "additive_window": {"attention_score": "additive", "sliding_window": 3},
    "gptj": {
        "parallel_residual": True,
        "shared_norm": True,
        "rotary_fraction": 0.5,
        "norm": "layernorm",
        "mlp": "geglu",
    },
    "neox": {"parallel_residual": True, "norm": "layernorm", "norm_bias": False},
    "untied_softcap": {"tie_embeddings": False, "logit_softcap": 1.5},
    "window_letters": {"sliding_window": 3, "sliding_window_pattern": "LS"},
    "value_embeddings": {"value_embeddings": True, "n_kv_heads": 2},
    "residual_scalars": {"residual_scalars": True, "positions": "learned"},
    "modern": {
        "mlp": "relu2",
        "qk_norm": True,
        "sliding_window": 3,
        "sliding_window_pattern": "SL",
        "value_embeddings": True,
        "residual_scalars": True,
        "logit_softcap": 15.0,
        "tie_embeddings": False,
        "initializer": "zero_residual",
    },
    "gemma2": {
        "n_kv_heads": 2,
        "mlp": "geglu",
        "norm_placement": "both",
        "attention_scale": 0.3,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "sliding_window": 3,
        "sliding_window_pattern": 2,
    },
    "gemma3": {
        "qk_norm": True,
        "norm_placement": "both",
        "sliding_window": 3,
        "sliding_window_pattern": "LS",
        "sliding_rope_theta": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "olmo2": {
        "n_kv_heads": 2,
        "norm_placement": "post",
        "qk_norm": True,
        "qk_norm_scope": "all_heads",
    },
    "smollm3": {"n_kv_heads": 2, "rotary_pattern": 2},
    "rotary_letters": {"rotary_pattern": "NR", "mlp": "geglu_erf"},
    "pythia": {
        "parallel_residual": True,
        "norm": "layernorm",
        "mlp": "gelu_erf",
        "mlp_bias": True,
        "attention_bias": True,
        "rotary_fraction": 0.5,
        "tie_embeddings": False,
    },
    "capped_alibi": {"attention_softcap": 2.0, "positions": "alibi", "n_kv_heads": 2},
    "mixture": {"n_experts": 4, "n_experts_per_token": 2},
    "mixture_plain": {"n_experts": 3, "mlp": "gelu", "normalize_expert_weights": False},
}


def build(**fields: object) -> Transformer:
    model = Transformer(TransformerConfig(**{**BASE, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(batch: int = 2, length: int = 10) -> Tensor:
    return torch.randint(0, BASE["vocab_size"], (batch, length))
