"""What is trained: the same model, batch and optimizer for every contender."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_GPT2 = {
    "positions": "learned",
    "norm": "layernorm",
    "mlp": "gelu",
    "mlp_bias": True,
    "attention_bias": True,
    "tie_embeddings": True,
}
_LLAMA = {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "tie_embeddings": False}


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


def _workload(
    name: str,
    family: dict[str, Any],
    seq_len: int,
    batch: int,
    batch_cuda: int,
    about: str,
    **model: Any,
) -> Workload:
    return Workload(
        name, {**family, "max_seq_len": seq_len, **model}, seq_len, batch, batch_cuda, about
    )


_ALL = [
    _workload(
        *("S", _GPT2, 256, 8, 64, "GPT-2, 6 x 384, 6 heads, vocabulary 4,096, context 256"),
        **{"n_layers": 6, "dim": 384, "n_heads": 6, "vocab_size": 4096},
    ),
    _workload(
        *("M", _LLAMA, 512, 4, 32, "Llama, 8 x 512, 8/4 heads, vocabulary 32,000, context 512"),
        **{"n_layers": 8, "dim": 512, "n_heads": 8, "n_kv_heads": 4},
        **{"hidden_dim": 1408, "vocab_size": 32000},
    ),
    _workload(
        *("L", _GPT2, 1024, 1, 32, "GPT-2 124M, context 1,024"),
        **{"n_layers": 12, "dim": 768, "n_heads": 12, "vocab_size": 50257},
    ),
    _workload(
        *("tiny", _GPT2, 16, 2, 2, "GPT-2, 2 x 32: for tests"),
        **{"n_layers": 2, "dim": 32, "n_heads": 2, "vocab_size": 128},
    ),
    _workload(
        *("tiny-llama", _LLAMA, 16, 2, 2, "Llama, 2 x 32: for tests"),
        **{"n_layers": 2, "dim": 32, "n_heads": 4, "n_kv_heads": 2},
        **{"hidden_dim": 64, "vocab_size": 128},
    ),
]
WORKLOADS = {workload.name: workload for workload in _ALL}
