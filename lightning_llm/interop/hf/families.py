"""The Hugging Face architectures that we read and write, in the order that export tries."""

from __future__ import annotations

from lightning_llm.interop.hf.family import Family
from lightning_llm.interop.hf.gpt2 import GPT2
from lightning_llm.interop.hf.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT2, LLAMA, QWEN2, QWEN3, MISTRAL, MIXTRAL, QWEN3_MOE)
}
