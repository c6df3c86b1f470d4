"""Decoder-only Transformers in plain PyTorch."""

from lightning_llm.models.cache import KVCache
from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.transformer import Transformer

__all__ = ["Transformer", "TransformerConfig", "KVCache"]
