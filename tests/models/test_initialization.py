"""Initial weights: their spread, and that the meta device changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from variants import BASE, VARIANTS, inputs

from lightning_llm.models import Transformer, TransformerConfig


def config(**fields: object) -> TransformerConfig:
    return TransformerConfig(**{**BASE, **fields})


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> TransformerConfig:
    return config(**VARIANTS[request.param])


def assert_same_weights(model: Transformer, expected: Transformer) -> None:
    weights = expected.state_dict()
    assert list(model.state_dict()) == list(weights)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    ids = inputs()
    assert torch.equal(model.eval()(ids), expected.eval()(ids))


def test_meta_device_then_reset_equals_direct_construction(variant: TransformerConfig) -> None:
    torch.manual_seed(7)
    expected = Transformer(variant)
    with torch.device("meta"):
        model = Transformer(variant)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    torch.manual_seed(7)
    model.reset_parameters()
    assert_same_weights(model, expected)


@pytest.mark.parametrize("recurse", [True, False])
def test_materialising_module_by_module(variant: TransformerConfig, recurse: bool) -> None:
    """As FSDP (the whole, then each owner of parameters) and Fabric (one by one) do it."""
    torch.manual_seed(7)
    expected = Transformer(variant)
    with torch.device("meta"):
        model = Transformer(variant)
    if recurse:
        model.to_empty(device="cpu")
    torch.manual_seed(7)
    for module in model.modules():
        owned = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if owned:
            if not recurse:
                module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
    assert_same_weights(model, expected)


def test_construction_draws_each_weight_once() -> None:
    torch.manual_seed(7)
    model = Transformer(config())
    torch.manual_seed(7)
    first = torch.empty_like(model.embedding.weight).normal_(std=BASE["init_std"])
    assert torch.equal(model.embedding.weight, first)


def test_default_dtype_is_honoured() -> None:
    torch.set_default_dtype(torch.bfloat16)
    model = Transformer(config())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("scheme", ["gpt2", "depth_scaled", "zero_residual"])
@pytest.mark.parametrize("n_experts", [0, 4])
def test_spread(scheme: str, n_experts: int) -> None:
    model = Transformer(
        config(
            dim=128,
            hidden_dim=256,
            n_layers=3,
            vocab_size=1000,
            initializer=scheme,
            n_experts=n_experts,
            init_std=0.05,
            tie_embeddings=False,
            attention_bias=True,
        )
    )
    for name, parameter in model.named_parameters():
        expected = 0.05
        if name.endswith(("attention.out.weight", "mlp.down.weight", "experts.down")):
            layer = int(name.split(".")[1])
            expected /= math.sqrt(2 * (layer + 1 if scheme == "depth_scaled" else 3))
            if scheme == "zero_residual":
                expected = 0.0
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        elif name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter))
        else:
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(parameter.mean().item()) <= 5 * expected / math.sqrt(parameter.numel())


def test_layers_start_as_the_identity() -> None:
    model = Transformer(
        config(initializer="zero_residual", value_embeddings=True, residual_scalars=True)
    )
    first = torch.nn.functional.rms_norm(model.embedding(inputs()), (16,), eps=1e-5)
    hidden, _ = model.blocks[0](first, start=first)
    assert torch.equal(hidden, first)
    assert torch.equal(model.blocks[1].attention.value_mix.weight, torch.full((2,), 0.5))
    assert model.value_embeddings["1"].weight.std().item() == pytest.approx(0.3, rel=0.2)


def test_scores_start_where_they_should() -> None:
    cosine = Transformer(config(attention_score="cosine")).blocks[0].attention
    torch.testing.assert_close(cosine.log_scale.exp(), torch.full((4,), 10.0))
    additive = Transformer(config(attention_score="additive", head_dim=256)).blocks[0].attention
    assert additive.score_vector.std().item() == pytest.approx(1 / 16, rel=0.1)


@pytest.mark.parametrize("positions", ["rope", "learned", "alibi"])
def test_loss_starts_at_that_of_guessing(positions: str) -> None:
    model = Transformer(
        TransformerConfig(vocab_size=512, dim=64, n_layers=4, n_heads=4, positions=positions)
    )
    ids = torch.randint(0, 512, (4, 64))
    logits = model(ids)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.15)
