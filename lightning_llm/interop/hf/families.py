"""The Hugging Face architectures that we read and write, in the order that export tries."""

from __future__ import annotations

from lightning_llm.interop.hf.family import Family
from lightning_llm.interop.hf.gpt2 import GPT2
from lightning_llm.interop.hf.gpt_neox import GPT_NEOX
from lightning_llm.interop.hf.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE
from lightning_llm.interop.hf.stablelm import STABLELM

_ORDER = (GPT2, LLAMA, QWEN2, QWEN3, MISTRAL, MIXTRAL, QWEN3_MOE, STABLELM, GPT_NEOX)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ORDER}
