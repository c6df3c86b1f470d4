"""Hugging Face formats, both ways: weights, configurations, tokenizers."""

from __future__ import annotations

from lightning_llm.interop.hf.export import check_export, save_pretrained
from lightning_llm.interop.hf.family import ExportError
from lightning_llm.interop.hf.load import Pretrained, load_pretrained
from lightning_llm.interop.hf.token_datasets import dataset_to_store, store_to_dataset
from lightning_llm.interop.hf.tokenizer import pack_tokenizer, unpack_tokenizer
from lightning_llm.interop.hf.weights import (
    from_hf_config,
    from_hf_state_dict,
    to_hf_config,
    to_hf_state_dict,
)

__all__ = [
    "save_pretrained",
    "check_export",
    "load_pretrained",
    "Pretrained",
    "ExportError",
    "pack_tokenizer",
    "unpack_tokenizer",
    "to_hf_config",
    "from_hf_config",
    "to_hf_state_dict",
    "from_hf_state_dict",
    "store_to_dataset",
    "dataset_to_store",
]
