"""Small models whose continuations vary, and their twins in ``transformers``."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_llm.interop.hf import from_hf_config, from_hf_state_dict
from lightning_llm.models import Transformer, TransformerConfig

VOCAB_SIZE = 96


def small_model(**options: Any) -> Transformer:
    """Random weights large enough that no token wins everywhere; evaluation mode, float32."""
    defaults: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "max_seq_len": 96,
        "n_layers": 2,
        "dim": 64,
        "n_heads": 4,
        "hidden_dim": 96,
    }
    torch.manual_seed(5)
    model = Transformer(TransformerConfig(**{**defaults, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.eval()


def twins() -> tuple[Transformer, LlamaForCausalLM]:
    """The same weights in both libraries."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=96,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(5)
    theirs = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    theirs.eval()
    hf_config = config.to_dict()
    ours = Transformer(from_hf_config(hf_config))
    ours.load_state_dict(from_hf_state_dict(hf_config, theirs.state_dict()))
    return ours.eval(), theirs


def random_prompts(*lengths: int) -> list[list[int]]:
    """Token ids of the given lengths."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(1, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


class CharacterTokenizer:
    """One token per character of printable ASCII; id 0 ends a text and is no text."""

    bos_token_id = None
    eos_token_id = 0
    pad_token_id = None
    eos_token = "<end>"

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) - 31 for character in text]}

    def decode(self, ids: Any, skip_special_tokens: bool, **_: Any) -> str:
        assert skip_special_tokens
        return "".join(chr(token + 31) for token in ids if token != 0)
