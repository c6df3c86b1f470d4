"""What is trained: the same model, batch and optimizer for every contender."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_GPT2: dict[str, Any] = {
    "positions": "learned",
    "norm": "layernorm",
    "mlp": "gelu",
    "mlp_bias": True,
    "attention_bias": True,
    "tie_embeddings": True,
}
_LLAMA: dict[str, Any] = {
    "positions": "rope",
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "tie_embeddings": False,
}


@dataclass(frozen=True)
class Workload:
    """A model and its batch.

    Attributes:
        name: As on the command line.
        model: Fields of `lightning_llm.models.TransformerConfig`.
        seq_len: Tokens of a row; equals the model's ``max_seq_len``.
        batch: Rows of a step on a CPU.
        batch_cuda: Rows of a step on a GPU.
        about: One line for tables.
    """

    name: str
    model: dict[str, Any] = field(repr=False)
    seq_len: int
    batch: int
    batch_cuda: int
    about: str

    @property
    def is_gpt2(self) -> bool:
        """Whether the model is GPT-2's architecture (else Llama's)."""
        return self.model["positions"] == "learned"


def _sizes(**fields: int) -> dict[str, int]:
    return fields


_ALL = [
    Workload(
        "S",
        _GPT2 | _sizes(n_layers=6, dim=384, n_heads=6, vocab_size=4096, max_seq_len=256),
        seq_len=256,
        batch=8,
        batch_cuda=64,
        about="GPT-2, 6 x 384, 6 heads, vocabulary 4,096, context 256",
    ),
    Workload(
        "M",
        _LLAMA
        | _sizes(n_layers=8, dim=512, n_heads=8, n_kv_heads=4, hidden_dim=1408)
        | _sizes(vocab_size=32000, max_seq_len=512),
        seq_len=512,
        batch=4,
        batch_cuda=32,
        about="Llama, 8 x 512, 8/4 heads, vocabulary 32,000, context 512",
    ),
    Workload(
        "L",
        _GPT2 | _sizes(n_layers=12, dim=768, n_heads=12, vocab_size=50257, max_seq_len=1024),
        seq_len=1024,
        batch=1,
        batch_cuda=32,
        about="GPT-2 124M, context 1,024",
    ),
    Workload(
        "tiny",
        _GPT2 | _sizes(n_layers=2, dim=32, n_heads=2, vocab_size=128, max_seq_len=16),
        seq_len=16,
        batch=2,
        batch_cuda=2,
        about="GPT-2, 2 x 32: for tests",
    ),
    Workload(
        "tiny-llama",
        _LLAMA
        | _sizes(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, hidden_dim=64)
        | _sizes(vocab_size=128, max_seq_len=16),
        seq_len=16,
        batch=2,
        batch_cuda=2,
        about="Llama, 2 x 32: for tests",
    ),
]
WORKLOADS = {workload.name: workload for workload in _ALL}
