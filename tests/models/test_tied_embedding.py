"""The gradient of a table that embedding and head share."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from lightning_llm.losses import linear_cross_entropy
from lightning_llm.models import Transformer, TransformerConfig


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=53, dim=16, n_layers=2, n_heads=2, max_seq_len=12)
    return Transformer(config).double()


@pytest.fixture
def ids() -> torch.Tensor:
    # Few distinct ids, so that rows are looked up again and again.
    return torch.randint(0, 9, (3, 12), generator=torch.Generator().manual_seed(1))


def _loss(model: Transformer, ids: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "no head":
        return model.backbone(ids).square().sum()
    if kind == "whole logits":
        return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="sum")
    hidden = model.backbone(ids).flatten(0, 1)
    return linear_cross_entropy(hidden, model.head_weight, ids.flatten(), reduction="sum")


@pytest.mark.parametrize("kind", ["chunked loss", "whole logits", "no head"])
def test_equals_the_gradient_of_two_tables(
    model: Transformer, ids: torch.Tensor, kind: str
) -> None:
    for _ in range(2):  # accumulated, as over micro-batches
        _loss(model, ids, kind).backward()
    apart = copy.deepcopy(model)
    apart.zero_grad()
    apart.embedding.tied = False  # plain nn.Embedding
    (2 * _loss(apart, ids, kind)).backward()
    expected = apart.embedding.weight.grad
    grad = model.embedding.weight.grad
    assert grad is not None
    assert grad.layout == torch.strided
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


def test_no_table_of_zeros_is_made(model: Transformer, ids: torch.Tensor) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    names = set()

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    loss = _loss(model, ids, "chunked loss")
    with Operators():
        loss.backward()
    assert "embedding_dense_backward" not in names
    assert names  # the backward pass was watched


def test_16_bit_tables_sum_rows_first(model: Transformer, ids: torch.Tensor) -> None:
    model.bfloat16()
    _loss(model, ids, "no head").backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.layout == torch.strided
    assert not model.embedding.weight._post_accumulate_grad_hooks


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_dense_too(
    model: Transformer, ids: torch.Tensor, again: Callable[[Transformer], Transformer]
) -> None:
    _loss(model, ids, "no head").backward()
    model.zero_grad()
    other = again(model)
    _loss(other, ids, "no head").backward()
    assert other.embedding.weight.grad.layout == torch.strided
