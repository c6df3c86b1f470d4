"""Decoding with a cache gives what one pass over the whole sequence gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from variants import BASE, VARIANTS, build, inputs

from lightning_llm.models import KVCache, Transformer, TransformerConfig


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(**VARIANTS[request.param])


@torch.no_grad()
@pytest.mark.parametrize("steps", [(1,) * 10, (6, 1, 1, 1, 1), (4, 3, 2, 1), (10,)])
def test_cached_equals_uncached(model: Transformer, steps: tuple[int, ...]) -> None:
    ids = inputs()
    cache = KVCache(model.config, batch_size=2)
    parts = [model(part, cache=cache) for part in ids.split(steps, dim=1)]
    assert cache.length == 10
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 6])
def test_left_padding_equals_no_padding(model: Transformer, first: int) -> None:
    """A prompt of 6 padded to 9 is continued as if it stood alone."""
    ids = inputs(batch=1)
    alone = model(ids)
    padding, total = 3, 13
    padded = torch.cat([torch.full((1, padding), 7), ids], dim=1)
    positions = (torch.arange(total) - padding).clamp(min=0)[None]
    documents = torch.tensor([[-1] * padding + [0] * 10])
    cache = KVCache(model.config, batch_size=1)
    prompt = padding + first
    parts = [
        model(
            padded[:, :prompt],
            position_ids=positions[:, :prompt],
            document_ids=documents[:, :prompt],
            cache=cache,
        )
    ]
    for t in range(prompt, total):  # the document of the last token goes on
        now = slice(t, t + 1)
        parts.append(model(padded[:, now], position_ids=positions[:, now], cache=cache))
    logits = torch.cat(parts, dim=1)[:, padding:]
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    assert cache.document_ids is not None
    assert cache.document_ids[:, :total].tolist() == documents.tolist()


@torch.no_grad()
def test_documents_given_late_are_new_ones() -> None:
    model, ids = build(), inputs()
    documents = torch.tensor([[0] * 6 + [3] * 4] * 2)
    cache = KVCache(model.config, batch_size=2)
    first = model(ids[:, :6], cache=cache)
    second = model(ids[:, 6:], document_ids=documents[:, 6:], cache=cache)
    expected = model(ids, document_ids=documents)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("index", [[1, 0], [1, 1], [0, 0, 1, 1], [1]])
def test_reorder(index: list[int]) -> None:
    model, ids = build(n_kv_heads=2), inputs()
    documents = torch.tensor([[0] * 5, [-1, -1, 0, 0, 0]])
    cache = KVCache(model.config, batch_size=2)
    model(ids[:, :5], document_ids=documents, cache=cache)
    cache.reorder(torch.tensor(index))
    assert cache.batch_size == len(index)
    logits = model(ids[index, 5:], cache=cache)
    whole = torch.cat([documents, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    expected = model(ids, document_ids=whole)[index, 5:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reset_forgets() -> None:
    model, ids = build(), inputs()
    cache = KVCache(model.config, batch_size=2)
    model(inputs(), document_ids=torch.zeros(2, 10, dtype=torch.long), cache=cache)
    cache.reset()
    assert cache.length == 0
    torch.testing.assert_close(model(ids, cache=cache), model(ids))


@torch.no_grad()
def test_plain_decoding_uses_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor | None] = []
    attend = F.scaled_dot_product_attention

    def spy(*arguments: Tensor, attn_mask: Tensor | None, **options: object) -> Tensor:
        masks.append(attn_mask)
        return attend(*arguments, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = build(n_kv_heads=2, sliding_window=12)
    cache = KVCache(model.config, batch_size=2)
    model(inputs(length=8), cache=cache)
    for _ in range(3):
        model(inputs(length=1), cache=cache)
    model(inputs(length=12))
    assert masks == [None] * len(masks)
    model(inputs(length=2), cache=cache)  # 13 tokens: the window now hides one
    assert masks[-1] is not None


@torch.no_grad()
def test_keys_take_the_dtype_they_are_computed_in() -> None:
    model, ids = build(), inputs()
    cache = KVCache(model.config, batch_size=2)
    with torch.autocast("cpu", torch.bfloat16):
        parts = [model(part, cache=cache) for part in ids.split((7, 1, 2), dim=1)]
        expected = model(ids)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=0.1, rtol=0.02)


def test_too_many_tokens() -> None:
    model = build()
    cache = KVCache(model.config, 2, max_seq_len=8)
    with torch.no_grad():
        model(inputs(length=6), cache=cache)
        with pytest.raises(ValueError, match=r"6 cached and 3 new tokens exceed the cache's.*=8"):
            model(inputs(length=3), cache=cache)


def test_wrong_batch_size() -> None:
    model = build()
    with pytest.raises(
        ValueError, match="has 2 sequences, the cache 3; create it with batch_size=2"
    ):
        model(inputs(), cache=KVCache(model.config, 3))


@pytest.mark.parametrize("capacity", [0, 17])
def test_capacity_beyond_the_model(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"max_seq_len={capacity} of the cache .*max_seq_len=16"):
        KVCache(TransformerConfig(**BASE), 1, capacity)
