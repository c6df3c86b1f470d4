"""Cosine and additive attention: bounds of the temperature, and of memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from variants import BASE, build, inputs

from lightning_llm.models import KVCache, TransformerConfig, attention_scores
from lightning_llm.models.attention_scores import AdditiveAttention


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
        return results


@pytest.mark.parametrize("variant", [{}, {"positions": "alibi"}, {"n_kv_heads": 2}])
def test_chunks_change_neither_values_nor_gradients(
    variant: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(attention_score="additive", **variant).train()
    ids = inputs()
    documents = torch.tensor([[0] * 4 + [1] * 6, [0] * 10])
    results = []
    for elements in (1 << 24, 2 * 4 * 10 * 4 * 3, 1):  # whole, three rows, one row at a time
        monkeypatch.setattr(attention_scores, "_CHUNK_ELEMENTS", elements)
        model.zero_grad()
        logits = model(ids, document_ids=documents)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([logits.detach(), *gradients])
    for whole, *chunked in zip(*results):
        for chunks in chunked:
            torch.testing.assert_close(chunks, whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_chunks_with_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(attention_score="additive"), inputs()
    expected = model(ids)
    monkeypatch.setattr(attention_scores, "_CHUNK_ELEMENTS", 1)
    cache = KVCache(model.config, 2)
    logits = torch.cat([model(part, cache=cache) for part in ids.split((6, 4), dim=1)], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_scores, "_CHUNK_ELEMENTS", 10_000)
    attention = AdditiveAttention(TransformerConfig(**BASE), residual_std=0.1)
    attention.reset_parameters()
    x = torch.randn(1, 64, 16, requires_grad=True)
    with LargestTensor() as largest:
        attention(x).sum().backward()
    assert largest.elements <= 10_000  # of 4 * 64 * 64 * 4 = 65,536


def test_cosine_temperature_is_bounded() -> None:
    """However large the learned scale, scores stay within 100; heads keep their own."""
    attention = build(attention_score="cosine").blocks[0].attention
    with torch.no_grad():
        attention.log_scale.copy_(torch.tensor([-2.0, 1.0, 4.0, 50.0]))
    query, key = attention.normalize(torch.randn(1, 3, 4, 1, 4), torch.randn(1, 3, 4, 1, 4))
    torch.testing.assert_close(key.norm(dim=-1), torch.ones(1, 3, 4, 1))
    scales = torch.tensor([-2.0, 1.0, 4.0, 100.0]).exp().clamp(max=100)
    torch.testing.assert_close(query.norm(dim=-1)[0, 0, :, 0], scales)
