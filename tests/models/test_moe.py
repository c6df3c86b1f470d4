"""The mixture of experts against transformers' Mixtral, and its grouped products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralSparseMoeBlock,
    load_balancing_loss_func,
)
from variants import build, inputs

from lightning_llm.models import TransformerConfig
from lightning_llm.models import grouped_linear as grouped
from lightning_llm.models.moe import MixtureOfExperts, load_balancing_loss


def mixture(**fields: object) -> MixtureOfExperts:
    sizes = {"dim": 16, "n_heads": 2, "hidden_dim": 24, "n_experts": 5}
    layer = MixtureOfExperts(TransformerConfig(**{**sizes, **fields}), residual_std=0.3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def test_equals_mixtral_with_gradients() -> None:
    ours = mixture()
    theirs = MixtralSparseMoeBlock(
        MixtralConfig(
            hidden_size=16, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2
        )
    )
    experts = ours.experts
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([experts.gate, experts.up], dim=1))
        theirs.experts.down_proj.copy_(experts.down)
    x = torch.randn(3, 7, 16)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_ours, y_theirs = ours(x_ours)[0], theirs(x_theirs)
    torch.testing.assert_close(y_ours, y_theirs, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(x)
    y_ours.backward(direction)
    y_theirs.backward(direction)
    gate_up = torch.cat([experts.gate.grad, experts.up.grad], dim=1)
    for mine, other in (
        (x_ours.grad, x_theirs.grad),
        (ours.router.weight.grad, theirs.gate.weight.grad),
        (gate_up, theirs.experts.gate_up_proj.grad),
        (experts.down.grad, theirs.experts.down_proj.grad),
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        experts.up[1, 2, 3] += 0.02  # and one weight of one expert is seen
    assert (ours(x)[0] - y_theirs).abs().max() > 1e-4


@pytest.mark.parametrize("n_chosen", [1, 2, 4])
def test_loss_equals_transformers(n_chosen: int) -> None:
    logits = 2 * torch.randn(50, 8)
    probabilities = logits.softmax(dim=-1).requires_grad_()
    counts = torch.bincount(probabilities.topk(n_chosen).indices.flatten(), minlength=8)
    loss = load_balancing_loss(probabilities, counts.cumsum(0).int())
    expected = load_balancing_loss_func((logits,), num_experts=8, top_k=n_chosen)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert probabilities.grad.abs().sum() > 0


def test_loss_of_balanced_and_collapsed_routing() -> None:
    even = torch.full((12, 4), 0.25)
    torch.testing.assert_close(
        load_balancing_loss(even, torch.tensor([6, 12, 18, 24])), torch.tensor(2.0)
    )
    one = torch.zeros(12, 4)
    one[:, 2] = 1.0
    torch.testing.assert_close(
        load_balancing_loss(one, torch.tensor([0, 0, 12, 12])), torch.tensor(4.0)
    )


def test_aux_loss_sums_the_layers_of_the_last_training_forward() -> None:
    model = build(n_experts=4, router_aux_loss_weight=0.5).train()
    assert model.aux_loss() is None
    losses = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, __, output: losses.append(output[1]))
    model(inputs())
    torch.testing.assert_close(model.aux_loss(), 0.5 * sum(losses))
    assert len(losses) == 2
    model.eval()(inputs())
    assert model.aux_loss() is None
    assert build().train().aux_loss() is None


def test_balancing_makes_the_router_even() -> None:
    """Minimising the loss alone moves tokens away from the favoured expert."""
    layer = mixture(n_experts=4, n_experts_per_token=1)
    x = torch.randn(256, 16) + 1
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.05)
    start = layer(x)[1].item()
    for _ in range(50):
        optimizer.zero_grad()
        layer(x)[1].backward()
        optimizer.step()
    assert start > 1.3
    assert layer(x)[1].item() < 1.1


GROUPS = {"uneven": [3, 3, 10, 12], "one": [0, 0, 12, 12], "last": [0, 0, 0, 12]}


def by_hand(x: Tensor, weight: Tensor, ends: list[int]) -> Tensor:
    starts = [0, *ends[:-1]]
    return torch.cat([x[a:b] @ weight[e].T for e, (a, b) in enumerate(zip(starts, ends))])


@pytest.mark.parametrize("name", GROUPS)
def test_grouped_linear(name: str) -> None:
    ends = GROUPS[name]
    x = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    ends_tensor = torch.tensor(ends, dtype=torch.int32)
    y = grouped.grouped_linear(x, weight, ends_tensor)
    torch.testing.assert_close(y, by_hand(x, weight, ends))
    assert torch.autograd.gradcheck(
        lambda x, weight: grouped.grouped_linear(x, weight, ends_tensor), (x, weight)
    )


# Of torch 2.14's own tracing of the leaves that it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_grouped_linear_is_a_sound_operator() -> None:
    x, weight = torch.randn(12, 6, requires_grad=True), torch.randn(4, 5, 6, requires_grad=True)
    torch.library.opcheck(
        grouped._looped_linear, (x, weight, torch.tensor([3, 3, 10, 12], dtype=torch.int32))
    )


def test_kernel_for_bfloat16_agrees() -> None:
    """What CUDA runs in bfloat16, here on the CPU: same values, same gradients."""
    x = torch.randn(12, 16, dtype=torch.bfloat16)
    weight = torch.randn(4, 8, 16, dtype=torch.bfloat16)
    direction = torch.randn(12, 8, dtype=torch.bfloat16)
    ends = torch.tensor([3, 3, 10, 12], dtype=torch.int32)
    results = []
    for function in (grouped.grouped_kernel, grouped.grouped_linear):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        y = function(*leaves, ends)
        y.backward(direction)
        results.append([y, *(leaf.grad for leaf in leaves)])
    for kernel, loop in zip(*results):
        torch.testing.assert_close(kernel, loop, atol=0.05, rtol=0.02)


def test_autocast_runs_the_experts_in_its_dtype() -> None:
    layer = mixture()
    x = torch.randn(9, 16)
    exact = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)[0]
    assert y.dtype == torch.float32  # as it came in
    error = (y - exact).abs().max().item()
    assert 0 < error < 0.05


def test_results_do_not_depend_on_the_other_tokens() -> None:
    layer = mixture()
    x = torch.randn(20, 16)
    whole = layer(x)[0]
    parts = torch.cat([layer(token[None])[0] for token in x])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
