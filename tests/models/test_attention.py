"""What attention asks of a GPU, told from tensors without memory."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_llm.models import TransformerConfig
from lightning_llm.models.attention import Attention


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_keys_are_copied_for_grouped_heads_only(
    n_kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask on a GPU: heads without a partner go to the kernel as they are."""
    config = TransformerConfig(dim=32, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=8)
    asked = {}

    def kernel(query, key, value, *, enable_gqa, **_):
        asked.update(key=key, value=value, enable_gqa=enable_gqa)
        return torch.empty_like(query)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    with FakeTensorMode():
        attention = Attention(config, residual_std=0.02)
        query = torch.empty(2, 4, 16, 8, device="cuda")
        key, value = torch.empty(2, 2, n_kv_heads, 16, 8, device="cuda").unbind()
        mask = torch.empty(2, 1, 16, 16, device="cuda")
        attention.attend(query, key, value, mask)
    assert asked["key"].shape == asked["value"].shape == query.shape
    assert not asked["enable_gqa"]
    copied = asked["key"] is not key
    assert copied == (n_kv_heads < 4)
