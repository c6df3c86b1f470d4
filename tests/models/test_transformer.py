"""Every architecture against the float64 reference, and what must hold for all of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from reference_model import reference_logits
from torch import Tensor
from variants import BASE, VARIANTS, build, inputs

from lightning_llm.models import Transformer, TransformerConfig


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(**VARIANTS[request.param])


DOCUMENTS = torch.tensor([[5, 5, 5, 5, 2, 2, 2, 2, 2, 9], [-1, -1, 0, 0, 0, 0, 0, 1, 1, 1]])
RESTARTING = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0], [0, 1, 0, 1, 2, 3, 4, 0, 1, 2]])


@torch.no_grad()
def test_logits_equal_reference(model: Transformer) -> None:
    ids = inputs()
    expected = reference_logits(model.config, model.state_dict(), ids)
    torch.testing.assert_close(model(ids).double(), expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_logits_with_documents_equal_reference(model: Transformer) -> None:
    ids = inputs()
    options = {"documents": DOCUMENTS, "positions": RESTARTING}
    expected = reference_logits(model.config, model.state_dict(), ids, **options)
    logits = model(ids, document_ids=DOCUMENTS, position_ids=RESTARTING)
    torch.testing.assert_close(logits.double(), expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_tolerance_sees_every_weight(model: Transformer) -> None:
    """A change of 2 % in any one tensor moves the logits by far more than the tolerance."""
    ids = inputs()
    logits = model(ids)
    for name, parameter in model.named_parameters():
        original = parameter.clone()
        parameter.mul_(1 + 0.02 * torch.rand_like(parameter))
        moved = (model(ids) - logits).abs().max().item()
        parameter.copy_(original)
        assert moved > 2e-4, name


@torch.no_grad()
def test_later_tokens_change_nothing_before_them(model: Transformer) -> None:
    ids = inputs()
    changed = ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % BASE["vocab_size"]
    before, after = model(ids), model(changed)
    # Not bit for bit: experts get other numbers of tokens, and products sum in another order.
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_documents_are_isolated(model: Transformer) -> None:
    """Other tokens in document 5 leave documents 2 and 9 of the same row bit-equal.

    Experts get other numbers of tokens, and a product of other rows may sum in another order.
    """
    ids = inputs()
    changed = ids.clone()
    changed[0, :4] = (ids[0, :4] + 1) % BASE["vocab_size"]
    before = model(ids, document_ids=DOCUMENTS)
    after = model(changed, document_ids=DOCUMENTS)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if model.config.n_experts else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(before[0, 4:], after[0, 4:], **tolerance)
    torch.testing.assert_close(before[1], after[1], **tolerance)
    assert not torch.allclose(before[0, :4], after[0, :4])


@torch.no_grad()
def test_packed_documents_equal_separate_ones(model: Transformer) -> None:
    ids = inputs(batch=1)
    packed = model(ids, document_ids=DOCUMENTS[:1], position_ids=RESTARTING[:1])
    separate = [model(part) for part in ids.split((4, 5, 1), dim=1)]
    torch.testing.assert_close(packed, torch.cat(separate, dim=1), atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_backbone_and_head_weight_give_the_logits() -> None:
    for tied in (True, False):
        model = build(tie_embeddings=tied, vocab_size=37)
        ids = inputs()
        assert model.head_weight.shape == (37, 16)
        torch.testing.assert_close(model.backbone(ids) @ model.head_weight.T, model(ids))


@torch.no_grad()
def test_bfloat16_stays_close_and_rotates_in_float32() -> None:
    """A model cast to bfloat16 keeps exact angles: late positions are as good as early ones."""
    model = build(n_layers=1, max_seq_len=4096, rope_theta=100.0)
    ids = inputs(length=6)
    late = torch.arange(4000, 4006).expand(2, -1)
    expected = model(ids, position_ids=late)
    torch.testing.assert_close(model(ids), expected, atol=1e-3, rtol=1e-3)  # RoPE is relative
    cast = copy.deepcopy(model).to(torch.bfloat16)
    error_late = (cast(ids, position_ids=late).float() - expected).abs().max().item()
    error_early = (cast(ids).float() - expected).abs().max().item()
    assert 0 < error_late < 2 * error_early
    with pytest.raises(AssertionError):  # and float32 against bfloat16 is told apart
        torch.testing.assert_close(cast(ids).float(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_autocast_stays_close(model: Transformer, documents: Tensor | None) -> None:
    ids = inputs()
    model.train()
    expected = model(ids, document_ids=documents)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, document_ids=documents)
    assert 0 < (logits - expected).norm() < 0.05 * expected.norm()
    logits.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_nothing_is_read_back_from_the_device(model: Transformer) -> None:
    """On the meta device a training step runs: no value decides what is done."""
    model = model.to("meta").train()
    ids, documents = inputs().to("meta"), DOCUMENTS.to("meta")
    for options in ({}, {"document_ids": documents, "position_ids": documents}):
        loss = model(ids, **options).sum()
        aux = model.aux_loss()
        (loss if aux is None else loss + aux).backward()


def test_dropout_acts_in_training_only(model: Transformer) -> None:
    dropped = Transformer(TransformerConfig(**{**model.config.__dict__, "dropout": 0.3})).eval()
    dropped.load_state_dict(model.state_dict())
    ids = inputs()
    torch.testing.assert_close(dropped(ids), model(ids))
    dropped.train()
    assert not torch.allclose(dropped(ids), dropped(ids))


def test_attention_weights_are_dropped() -> None:
    for score in ("dot", "additive"):
        model = build(attention_score=score, dropout=0.5).train()
        attention = model.blocks[0].attention
        x = torch.randn(1, 6, 16)
        assert not torch.allclose(attention(x), attention(x))


def test_every_weight_gets_a_gradient(model: Transformer) -> None:
    model.train()
    loss = model(inputs(batch=4)).square().mean()
    aux = model.aux_loss()
    (loss if aux is None else loss + aux).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_first_use_in_inference_mode_does_not_spoil_training(model: Transformer) -> None:
    """Lightning validates before it trains, and tables and masks are kept from then on."""
    ids = inputs()
    with torch.inference_mode():
        model(ids)
    model.train()
    model(ids).sum().backward()


def test_copies_and_pickles_after_a_training_step(model: Transformer) -> None:
    model.train()
    model(inputs()).sum().backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        ids = inputs()
        assert torch.equal(twin.eval()(ids), model.eval()(ids))
        model.train()


def test_sequence_longer_than_the_model() -> None:
    with pytest.raises(ValueError, match=r"17 tokens exceed the model's max_seq_len=16"):
        build()(inputs(length=17))
