"""Train causal language models fast, inside PyTorch Lightning.

The names below are resolved on first use, so ``import lightning_llm`` costs nothing and
``import lightning_llm.callbacks`` does not load the model, the data path or Hugging Face.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_llm._version import __version__

if TYPE_CHECKING:
    from lightning_llm.data.text_datamodule import TextDataModule
    from lightning_llm.interop.hf.causal_lm import HFCausalLM
    from lightning_llm.module import CausalLM

_LAZY = {
    "CausalLM": "lightning_llm.module",
    "HFCausalLM": "lightning_llm.interop.hf.causal_lm",
    "TextDataModule": "lightning_llm.data.text_datamodule",
}

__all__ = ["CausalLM", "HFCausalLM", "TextDataModule", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
