"""From text to batches: sources, tokenizers, token stores, packing, order and loading."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_llm.data.chat_datamodule import ChatDataModule
    from lightning_llm.data.fill_in_the_middle import fim_prompt
    from lightning_llm.data.loader import TokenLoader
    from lightning_llm.data.packing import ConcatWindows, PackedDocuments
    from lightning_llm.data.qa_datamodule import QADataModule
    from lightning_llm.data.raw_tokens import RawTokenStore
    from lightning_llm.data.store import TokenStore
    from lightning_llm.data.store_writer import TokenStoreWriter
    from lightning_llm.data.text_datamodule import TextDataModule
    from lightning_llm.data.token_datamodule import TokenDataModule
    from lightning_llm.data.tokenizer import (
        TokenizerSpec,
        encode_texts,
        load_tokenizer,
        token_byte_lengths,
        train_tokenizer,
    )
    from lightning_llm.data.translation_datamodule import TranslationDataModule

_LAZY = {
    "ChatDataModule": "lightning_llm.data.chat_datamodule",
    "ConcatWindows": "lightning_llm.data.packing",
    "PackedDocuments": "lightning_llm.data.packing",
    "QADataModule": "lightning_llm.data.qa_datamodule",
    "RawTokenStore": "lightning_llm.data.raw_tokens",
    "TextDataModule": "lightning_llm.data.text_datamodule",
    "TokenDataModule": "lightning_llm.data.token_datamodule",
    "TokenLoader": "lightning_llm.data.loader",
    "TokenStore": "lightning_llm.data.store",
    "TokenStoreWriter": "lightning_llm.data.store_writer",
    "TokenizerSpec": "lightning_llm.data.tokenizer",
    "TranslationDataModule": "lightning_llm.data.translation_datamodule",
    "encode_texts": "lightning_llm.data.tokenizer",
    "fim_prompt": "lightning_llm.data.fill_in_the_middle",
    "load_tokenizer": "lightning_llm.data.tokenizer",
    "token_byte_lengths": "lightning_llm.data.tokenizer",
    "train_tokenizer": "lightning_llm.data.tokenizer",
}

__all__ = [
    "TextDataModule",
    "ChatDataModule",
    "TranslationDataModule",
    "QADataModule",
    "TokenDataModule",
    "TokenStore",
    "TokenStoreWriter",
    "RawTokenStore",
    "ConcatWindows",
    "PackedDocuments",
    "TokenLoader",
    "TokenizerSpec",
    "train_tokenizer",
    "load_tokenizer",
    "encode_texts",
    "token_byte_lengths",
    "fim_prompt",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
