"""Published architectures, and two small ones that train on a CPU."""

from __future__ import annotations

from typing import Any

_GPT2: dict[str, Any] = {
    "vocab_size": 50257,
    "max_seq_len": 1024,
    "positions": "learned",
    "norm": "layernorm",
    "mlp": "gelu",
    "mlp_bias": True,
    "attention_bias": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019; the dropout of 0.1 it was trained with is left to the recipe.
    "gpt2-124m": {**_GPT2, "n_layers": 12, "dim": 768, "n_heads": 12},
    "gpt2-350m": {**_GPT2, "n_layers": 24, "dim": 1024, "n_heads": 16},
    "gpt2-774m": {**_GPT2, "n_layers": 36, "dim": 1280, "n_heads": 20},
    "gpt2-1.5b": {**_GPT2, "n_layers": 48, "dim": 1600, "n_heads": 25},
    # arXiv:2407.21783
    "llama3-8b": {
        "vocab_size": 128256,
        "max_seq_len": 8192,
        "n_layers": 32,
        "dim": 4096,
        "n_heads": 32,
        "n_kv_heads": 8,
        "hidden_dim": 14336,
        "rope_theta": 500000.0,
        "tie_embeddings": False,
    },
    "llama3.2-1b": {
        "vocab_size": 128256,
        "max_seq_len": 131072,
        "n_layers": 16,
        "dim": 2048,
        "n_heads": 32,
        "n_kv_heads": 8,
        "hidden_dim": 8192,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    # arXiv:2502.02737
    "smollm2-135m": {
        "vocab_size": 49152,
        "max_seq_len": 8192,
        "n_layers": 30,
        "dim": 576,
        "n_heads": 9,
        "n_kv_heads": 3,
        "hidden_dim": 1536,
        "rope_theta": 100000.0,
    },
    # arXiv:2505.09388
    "qwen3-0.6b": {
        "vocab_size": 151936,
        "max_seq_len": 40960,
        "n_layers": 28,
        "dim": 1024,
        "n_heads": 16,
        "n_kv_heads": 8,
        "head_dim": 128,
        "hidden_dim": 3072,
        "rope_theta": 1000000.0,
        "norm_eps": 1e-6,
        "qk_norm": True,
    },
    # arXiv:2401.02385
    "tinyllama-1.1b": {
        "vocab_size": 32000,
        "max_seq_len": 2048,
        "n_layers": 22,
        "dim": 2048,
        "n_heads": 32,
        "n_kv_heads": 4,
        "hidden_dim": 5632,
        "tie_embeddings": False,
    },
    # Llama-style, for two cores and a vocabulary trained on the user's own text.
    "cpu-1m": {
        "vocab_size": 2048,
        "max_seq_len": 256,
        "n_layers": 4,
        "dim": 128,
        "n_heads": 4,
        "n_kv_heads": 2,
    },
    "cpu-10m": {
        "vocab_size": 8192,
        "max_seq_len": 512,
        "n_layers": 6,
        "dim": 320,
        "n_heads": 5,
    },
}
