"""The Hugging Face architectures that we read and write, in the order that export tries."""

from __future__ import annotations

from lightning_llm.interop.hf.family import Family
from lightning_llm.interop.hf.gemma import GEMMA, GEMMA2, GEMMA3
from lightning_llm.interop.hf.gpt2 import GPT2
from lightning_llm.interop.hf.gpt_neox import GPT_NEOX
from lightning_llm.interop.hf.llama import LLAMA, MISTRAL, MIXTRAL
from lightning_llm.interop.hf.olmo import OLMO2, OLMO3
from lightning_llm.interop.hf.phi3 import PHI3
from lightning_llm.interop.hf.qwen import QWEN2, QWEN3, QWEN3_MOE
from lightning_llm.interop.hf.smollm3 import SMOLLM3
from lightning_llm.interop.hf.stablelm import STABLELM

_ORDER = (
    GPT2,
    LLAMA,
    QWEN2,
    QWEN3,
    MISTRAL,
    MIXTRAL,
    QWEN3_MOE,
    SMOLLM3,
    OLMO2,
    OLMO3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    STABLELM,
    GPT_NEOX,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ORDER}
