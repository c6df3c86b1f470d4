"""FLOPs per token against torch's own count of the operations that run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_llm.models import Transformer, TransformerConfig

SIZES = {"vocab_size": 97, "n_layers": 3, "dim": 64, "n_heads": 4, "max_seq_len": 128}


def _grouped(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * x[0] * weight[1] * weight[2]


def _grouped_gradient(grad: tuple[int, ...], x: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * grad[0] * grad[1] * x[1]


def counted(config: TransformerConfig, seq_len: int) -> float:
    """Of one training step of 2 sequences, per token; on the meta device attention is counted."""
    with torch.device("meta"):
        model = Transformer(config)
        ids = torch.zeros(2, seq_len, dtype=torch.long)
    mapping = {
        torch.ops.lightning_llm.looped_linear: _grouped,
        torch.ops.lightning_llm.looped_weight_gradient: _grouped_gradient,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model(ids).sum().backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_kv_heads": 2},
        {"n_kv_heads": 2, "head_dim": 32, "qk_norm": True},
        {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "mlp_bias": True},
        {"tie_embeddings": False, "mlp": "geglu", "parallel_residual": True},
        {"value_embeddings": True, "residual_scalars": True, "n_kv_heads": 2},
        {"n_experts": 8, "n_experts_per_token": 2},
        {"n_experts": 4, "n_experts_per_token": 1, "mlp": "relu2"},
    ],
)
def test_equals_the_operations_that_run(fields: dict[str, object]) -> None:
    config = TransformerConfig(**{**SIZES, **fields})
    with torch.device("meta"):
        model = Transformer(config)
    assert model.flops_per_token(128) == pytest.approx(counted(config, 128), rel=1e-9)
    assert model.flops_per_token(64) == pytest.approx(counted(config, 64), rel=1e-9)


def test_windows_and_causality() -> None:
    config = TransformerConfig(**SIZES)
    base = 6 * sum(  # every matrix, and the head although it is tied
        parameter.numel() for parameter in Transformer(config).parameters() if parameter.ndim == 2
    )

    def attention(config: TransformerConfig, causal: bool = False) -> int:
        with torch.device("meta"):
            return Transformer(config).flops_per_token(100, causal=causal) - base

    assert attention(config) == 12 * 3 * 64 * 100
    assert attention(config, causal=True) == 6 * 3 * 64 * 100
    local = replace(config, sliding_window=20)
    assert attention(local) == 12 * 3 * 64 * 20
    assert attention(replace(config, sliding_window=120)) == attention(config)
    mixed = replace(local, sliding_window_pattern=3)
    assert attention(mixed) == 12 * 64 * (20 + 20 + 100)
    # The mean number of keys a query sees, counted one by one; up to the query's own half key.
    for window in (20, 100):
        seen = sum(min(t + 1, window) for t in range(100)) / 100
        causal = attention(replace(config, sliding_window=window), causal=True)
        assert causal / (12 * 3 * 64) == pytest.approx(seen, abs=0.5)


@pytest.mark.parametrize(
    "fields", [{}, {"n_kv_heads": 2, "mlp": "gelu"}, {"tie_embeddings": False, "vocab_size": 301}]
)
def test_parts_are_those_of_the_modules(fields: dict[str, object]) -> None:
    config = TransformerConfig(**{**SIZES, **fields})
    with torch.device("meta"):
        model = Transformer(config)
        ids = torch.zeros(2, 128, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    seen = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    parts = model.flops_by_part(128)
    for part in ("attention", "mlp"):
        names = [f"Transformer.blocks.{layer}.{part}" for layer in range(config.n_layers)]
        assert sum(seen[name] for name in names) / ids.numel() == pytest.approx(parts[part])
    assert sum(parts.values()) == model.flops_per_token(128)
