"""From text to batches: sources, tokenizers, token stores, packing, order and loading."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_llm.data.chat_datamodule import ChatDataModule
    from lightning_llm.data.fill_in_the_middle import fim_prompt
    from lightning_llm.data.qa_datamodule import QADataModule
    from lightning_llm.data.raw_tokens import RawTokenStore
    from lightning_llm.data.store import TokenStore
    from lightning_llm.data.store_writer import TokenStoreWriter
    from lightning_llm.data.text_datamodule import TextDataModule
    from lightning_llm.data.token_datamodule import TokenDataModule
    from lightning_llm.data.tokenizer import TokenizerSpec
    from lightning_llm.data.translation_datamodule import TranslationDataModule

_LAZY = {
    "ChatDataModule": "lightning_llm.data.chat_datamodule",
    "QADataModule": "lightning_llm.data.qa_datamodule",
    "RawTokenStore": "lightning_llm.data.raw_tokens",
    "TextDataModule": "lightning_llm.data.text_datamodule",
    "TokenDataModule": "lightning_llm.data.token_datamodule",
    "TokenStore": "lightning_llm.data.store",
    "TokenStoreWriter": "lightning_llm.data.store_writer",
    "TokenizerSpec": "lightning_llm.data.tokenizer",
    "TranslationDataModule": "lightning_llm.data.translation_datamodule",
    "fim_prompt": "lightning_llm.data.fill_in_the_middle",
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
    "TokenizerSpec",
    "fim_prompt",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
