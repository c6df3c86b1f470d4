"""Cosine, additive and capped attention: bounds of the temperature, and of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from variants import build, inputs

from lightning_llm.models import KVCache, Transformer, attention_scores


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
        return results


CHUNKED = {
    "additive": {"attention_score": "additive"},
    "additive_alibi": {"attention_score": "additive", "positions": "alibi"},
    "additive_grouped": {"attention_score": "additive", "n_kv_heads": 2},
    "capped": {"attention_softcap": 2.0},
    "capped_alibi": {"attention_softcap": 2.0, "positions": "alibi"},
    "capped_grouped": {"attention_softcap": 2.0, "n_kv_heads": 2, "sliding_window": 4},
}


@pytest.mark.parametrize("variant", CHUNKED.values(), ids=list(CHUNKED))
def test_chunks_change_neither_values_nor_gradients(
    variant: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(**variant).train()
    ids = inputs()
    documents = torch.tensor([[0] * 4 + [1] * 6, [0] * 10])
    results = []
    per_score = model.blocks[0].attention.elements_per_score
    for elements in (1 << 24, 2 * 4 * 10 * per_score * 3, 1):  # whole, three rows, one at a time
        monkeypatch.setattr(attention_scores, "_CHUNK_ELEMENTS", elements)
        model.zero_grad()
        logits = model(ids, document_ids=documents)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([logits.detach(), *gradients])
    for whole, *chunked in zip(*results):
        for chunks in chunked:
            torch.testing.assert_close(chunks, whole, atol=1e-4, rtol=1e-4)


def test_a_high_cap_is_the_fused_attention() -> None:
    """The chunks and torch's kernel are twins: values and gradients, with dropout off."""
    capped = build(attention_softcap=1e4, attention_scale=0.3, n_kv_heads=2)
    fused = Transformer(replace(capped.config, attention_softcap=None)).eval()
    fused.load_state_dict(capped.state_dict())
    ids = inputs()
    for model in (capped, fused):
        model(ids).square().sum().backward()
    torch.testing.assert_close(capped(ids), fused(ids), atol=1e-5, rtol=1e-5)
    for ours, expected in zip(capped.parameters(), fused.parameters()):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["additive", "capped"])
def test_chunks_with_a_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(**CHUNKED[name]), inputs()
    expected = model(ids)
    monkeypatch.setattr(attention_scores, "_CHUNK_ELEMENTS", 1)
    cache = KVCache(model.config, 2)
    logits = torch.cat([model(part, cache=cache) for part in ids.split((6, 4), dim=1)], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "limit"), [("additive", 10_000), ("capped", 5_000)])
def test_memory_is_bounded(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_scores, "_CHUNK_ELEMENTS", limit)
    attention = build(**CHUNKED[name]).blocks[0].attention
    x = torch.randn(1, 64, 16, requires_grad=True)
    with LargestTensor() as largest:
        attention(x).sum().backward()
    assert largest.elements <= limit  # of 4 * 64 * 64 = 16,384, times 4 components if additive


def test_cosine_temperature_is_bounded() -> None:
    """However large the learned scale, scores stay within 100; heads keep their own."""
    attention = build(attention_score="cosine").blocks[0].attention
    with torch.no_grad():
        attention.log_scale.copy_(torch.tensor([-2.0, 1.0, 4.0, 50.0]))
    query, key = attention.normalize(torch.randn(1, 3, 4, 1, 4), torch.randn(1, 3, 4, 1, 4))
    torch.testing.assert_close(key.norm(dim=-1), torch.ones(1, 3, 4, 1))
    scales = torch.tensor([-2.0, 1.0, 4.0, 100.0]).exp().clamp(max=100)
    torch.testing.assert_close(query.norm(dim=-1)[0, 0, :, 0], scales)
