"""Tiny `HFCausalLM` modules, their batches, and a trainer."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_llm import HFCausalLM

VOCAB = 64
_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that a leak or a wrong scale shows
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_GEMMA2 = {
    **_GROUPED,
    "model_type": "gemma2",
    "head_dim": 8,
    "sliding_window": 3,
    "final_logit_softcapping": 2.0,
    "attn_logit_softcapping": 5.0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_GROUPED},
    "llama-tied": {"model_type": "llama", **_GROUPED, "tie_word_embeddings": True},
    "gpt2": _GPT2,
    "mistral": {"model_type": "mistral", **_GROUPED, "sliding_window": 3},
    "gemma2": _GEMMA2,
    "granite": {"model_type": "granite", **_GROUPED, "logits_scaling": 0.25},
    "cohere": {"model_type": "cohere", **_GROUPED, "logit_scale": 3.0},
    "gpt_neox": {"model_type": "gpt_neox", **_SMALL},
    "granitemoe": {
        "model_type": "granitemoe",
        **_GROUPED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "logits_scaling": 2.0,
    },
    "phi": {"model_type": "phi", **_SMALL},  # bias on the head
}


def module(name: str = "llama", **options: Any) -> HFCausalLM:
    return HFCausalLM(CONFIGS[name], **options)


def batch(rows: int = 3, length: int = 12) -> dict[str, Tensor]:
    """Hugging Face labels, some ignored."""
    ids = torch.randint(2, VOCAB, (rows, length))
    labels = ids.clone()
    labels[0, :5] = -100
    labels[-1, -4:] = -100
    return {"input_ids": ids, "labels": labels}


def loader(batches: Any) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(batches, batch_size=None)


def trainer(**options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return L.Trainer(**(defaults | options))
