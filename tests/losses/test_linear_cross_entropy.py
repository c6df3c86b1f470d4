"""Values and gradients of the chunked loss against float64 autograd, and the edges of its use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_oracle import Problem, expected_rows, problem, reduced, value_and_gradients
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_llm.losses import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_cross_entropy_with_nll,
)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"z_loss": 1e-2},
    {"logit_softcap": 2.0},
    {"label_smoothing": 0.2, "z_loss": 1e-2, "logit_softcap": 3.0},
]
REDUCTIONS = ["sum", "mean", "none"]

# (relative error of the loss, relative error of a gradient in the Frobenius norm) against float64
# on the same rounded inputs. bfloat16 keeps 8 bits: 2^-9 = 0.2 % per rounding.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (5e-7, 2e-6),
    torch.bfloat16: (2e-3, 1e-2),
    torch.float16: (3e-4, 2e-3),
}


def factors_for(reduction: str, n: int) -> Tensor:
    """Gradient of the loss: not 1, so that a forgotten factor shows."""
    return torch.randn(n, dtype=torch.float64) if reduction == "none" else torch.tensor(1.75)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def errors_against_oracle(inputs: Problem, reduction: str, **options: Any) -> tuple[float, float]:
    """Relative errors of the loss and of the worst gradient."""
    exact = inputs.to(torch.float64)
    factors = factors_for(reduction, len(inputs.labels))
    oracle_options = {key: value for key, value in options.items() if key != "chunk_size"}
    rows = expected_rows(exact, **oracle_options)
    expected = value_and_gradients(reduced(rows, inputs.labels, reduction), exact, factors)
    loss = linear_cross_entropy(
        inputs.hidden,
        inputs.weight,
        inputs.labels,
        bias=inputs.bias,
        reduction=reduction,  # type: ignore[arg-type]
        **options,
    )
    got = value_and_gradients(loss, inputs, factors)
    errors = [relative_error(*pair) for pair in zip(got, expected, strict=True)]
    return errors[0], max(errors[1:])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 37, 64])
def test_equals_float64_autograd(
    options: dict[str, Any], reduction: str, chunk_size: int | None
) -> None:
    loss, gradient = errors_against_oracle(problem(), reduction, chunk_size=chunk_size, **options)
    assert loss < 1e-12
    assert gradient < 1e-12


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
@pytest.mark.parametrize(
    ("n", "d", "v", "chunk_size"),
    [(1, 1, 2, None), (7, 3, 5, 2), (33, 64, 127, 8), (130, 17, 1031, None)],
)
def test_odd_shapes_in_every_dtype(
    dtype: torch.dtype, options: dict[str, Any], n: int, d: int, v: int, chunk_size: int | None
) -> None:
    inputs = problem(n, d, v, dtype, ignored=0)
    loss, gradient = errors_against_oracle(inputs, "mean", chunk_size=chunk_size, **options)
    assert loss < TOLERANCE[dtype][0]
    assert gradient < TOLERANCE[dtype][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_tolerances_can_fail(dtype: torch.dtype) -> None:
    inputs = problem(33, 64, 127, dtype, ignored=0)
    exact = inputs.to(torch.float64)
    expected = value_and_gradients(expected_rows(exact).sum(), exact, torch.tensor(1.0))
    with torch.no_grad():
        inputs.weight[5, 7] += 0.5
    loss = linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, bias=inputs.bias, reduction="sum"
    )
    got = value_and_gradients(loss, inputs, torch.tensor(1.0))
    errors = [relative_error(*pair) for pair in zip(got, expected, strict=True)]
    assert max(errors[1:]) > TOLERANCE[dtype][1]


def test_gradcheck() -> None:
    inputs = problem(6, 4, 9)

    def call(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden,
            weight,
            inputs.labels,
            bias=bias,
            label_smoothing=0.1,
            z_loss=1e-2,
            logit_softcap=4.0,
            chunk_size=4,
            reduction="mean",
        )

    assert torch.autograd.gradcheck(call, (inputs.hidden, inputs.weight, inputs.bias))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_plain_twin_agrees(reduction: Any, options: dict[str, Any]) -> None:
    inputs = problem()
    factors = factors_for(reduction, len(inputs.labels))
    calls = [
        call(*inputs[:3], bias=inputs.bias, reduction=reduction, **options)
        for call in (linear_cross_entropy, linear_cross_entropy_reference)
    ]
    ours, plain = (value_and_gradients(loss, inputs, factors) for loss in calls)
    for got, expected in zip(ours, plain, strict=True):
        assert_close(got, expected, rtol=1e-11, atol=1e-13)


def test_with_nll_reports_the_plain_likelihood() -> None:
    inputs = problem()
    options = {"label_smoothing": 0.1, "z_loss": 1e-2, "logit_softcap": 5.0}
    loss, nll = linear_cross_entropy_with_nll(*inputs[:3], bias=inputs.bias, **options)  # type: ignore[arg-type]
    assert_close(loss, expected_rows(inputs, **options).sum())  # type: ignore[arg-type]
    assert_close(nll, expected_rows(inputs, logit_softcap=5.0).sum().detach())
    assert loss.requires_grad
    assert not nll.requires_grad


def test_nll_is_float32_for_16_bit_inputs() -> None:
    inputs = problem(dtype=torch.bfloat16)
    loss, nll = linear_cross_entropy_with_nll(*inputs[:3])
    assert loss.dtype == nll.dtype == torch.float32


def test_extreme_logits_stay_exact() -> None:
    """A likelihood whose probability underflows is still a number, as from log-softmax."""
    hidden = torch.tensor([[300.0], [-300.0], [80.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    labels = torch.tensor([1, 0, 2])
    loss = linear_cross_entropy(hidden, weight, labels, reduction="none")
    assert_close(loss, torch.tensor([600.0, 600.0, 80.0]))
    loss.sum().backward()
    assert_close(hidden.grad, torch.tensor([[2.0], [-2.0], [1.0]]))


def test_another_ignore_index() -> None:
    inputs = problem(ignored=0)
    loss = linear_cross_entropy(*inputs[:3], bias=inputs.bias, ignore_index=0, reduction="mean")
    rows = expected_rows(inputs, ignore_index=0)
    assert_close(loss, reduced(rows, inputs.labels, "mean", ignore_index=0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("n", [0, 7])
def test_nothing_to_predict_costs_nothing(reduction: Any, n: int) -> None:
    inputs = problem(n, dtype=torch.float32)
    labels = torch.full((n,), -100)
    loss = linear_cross_entropy(
        inputs.hidden,
        inputs.weight,
        labels,
        bias=inputs.bias,
        label_smoothing=0.1,
        z_loss=0.1,
        reduction=reduction,
    )
    assert torch.count_nonzero(loss) == 0
    assert loss.shape == ((n,) if reduction == "none" else ())
    for gradient in value_and_gradients(loss, inputs, torch.ones(())):
        assert torch.count_nonzero(gradient) == 0
        assert not gradient.isnan().any()


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_frozen_inputs_get_no_gradient(frozen: str, reduction: Any) -> None:
    inputs = problem()
    expected = value_and_gradients(expected_rows(inputs), inputs, torch.tensor(1.0))[1:]
    getattr(inputs, frozen).requires_grad_(False)
    loss = linear_cross_entropy(*inputs[:3], bias=inputs.bias, reduction=reduction)
    loss.sum().backward()
    for name, gradient in zip(("hidden", "weight", "bias"), expected, strict=True):
        got = getattr(inputs, name).grad
        if name == frozen:
            assert got is None
        else:
            assert_close(got, gradient)


def test_no_grad_is_a_pure_forward_pass() -> None:
    inputs = problem()
    with torch.no_grad():
        loss = linear_cross_entropy(*inputs[:3], bias=inputs.bias, reduction="sum")
    assert not loss.requires_grad
    assert_close(loss, expected_rows(inputs).sum().detach())
    with torch.inference_mode():
        again = linear_cross_entropy(*inputs[:3], bias=inputs.bias, reduction="sum")
        assert_close(again, loss)


def test_autocast_multiplies_in_16_bits_and_keeps_float32_gradients() -> None:
    inputs = problem(64, 32, 127, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = inputs.hidden * 1.0
        loss = linear_cross_entropy(
            hidden.bfloat16(), inputs.weight, inputs.labels, bias=inputs.bias, reduction="sum"
        )
        plain = linear_cross_entropy_reference(
            hidden.bfloat16(), inputs.weight, inputs.labels, bias=inputs.bias, reduction="sum"
        )
    assert loss.dtype == torch.float32
    assert 0 < abs(loss.item() / expected_rows(inputs).sum().item() - 1) < 2e-3
    assert_close(loss, plain, rtol=2e-3, atol=0)
    exact = value_and_gradients(expected_rows(inputs).sum(), inputs, torch.tensor(1.0))
    for got, expected in zip(
        value_and_gradients(loss, inputs, torch.tensor(1.0))[1:], exact[1:], strict=True
    ):
        assert got.dtype == torch.float32
        assert relative_error(got, expected.double()) < TOLERANCE[torch.bfloat16][1]


def test_many_chunks_do_not_pile_up_rounding_of_a_16_bit_weight_gradient() -> None:
    inputs = problem(1024, 8, 16, torch.bfloat16, ignored=0)
    _, whole = errors_against_oracle(inputs, "sum")
    _, chunked = errors_against_oracle(inputs, "sum", chunk_size=4)
    assert chunked < 1.2 * whole


def test_shared_weight_adds_up_both_uses() -> None:
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    ids, labels = torch.tensor([1, 2, 3]), torch.tensor([2, 3, 4])
    linear_cross_entropy(weight[ids], weight, labels, chunk_size=2).backward()
    got, weight.grad = weight.grad, None
    linear_cross_entropy_reference(weight[ids], weight, labels).backward()
    assert_close(got, weight.grad)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_retained_graph_can_go_back_again(reduction: Any) -> None:
    inputs = problem()
    loss = linear_cross_entropy(*inputs[:3], bias=inputs.bias, reduction=reduction).sum()
    leaves = (inputs.hidden, inputs.weight, inputs.bias)
    first = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for one, other in zip(first, second, strict=True):
        assert_close(one, 3 * other)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_derivative_is_refused(reduction: Any) -> None:
    inputs = problem()
    loss = linear_cross_entropy(*inputs[:3], reduction=reduction).sum()
    with pytest.raises(RuntimeError, match=r"no second derivative.*linear_cross_entropy_reference"):
        torch.autograd.grad(loss, inputs.hidden, create_graph=True)


def test_strided_inputs() -> None:
    inputs = problem(20, 6, 30)
    hidden = torch.stack([inputs.hidden, inputs.hidden], dim=2)[:, :, 0].detach().requires_grad_()
    weight = inputs.weight.detach().T.contiguous().T.requires_grad_()
    labels = torch.stack([inputs.labels, inputs.labels], dim=1)[:, 0]
    loss = linear_cross_entropy(
        hidden, weight, labels, bias=inputs.bias, reduction="sum", chunk_size=7
    )
    loss.backward()
    expected = value_and_gradients(expected_rows(inputs).sum(), inputs, torch.tensor(1.0))
    for got, value in zip((loss.detach(), hidden.grad, weight.grad), expected[:3], strict=True):
        assert_close(got, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("options", [{}, {"reduction": "mean"}, {"reduction": "sum"}], ids=str)
def test_the_same_arguments_give_what_torch_gives(
    dtype: torch.dtype, smoothing: float, options: dict[str, Any]
) -> None:
    """The reduction too, if it is left out: torch's function of the same name averages."""
    inputs = problem(dtype=dtype)
    logits = F.linear(inputs.hidden, inputs.weight, inputs.bias)
    expected = F.cross_entropy(logits, inputs.labels, label_smoothing=smoothing, **options)
    expected_gradients = torch.autograd.grad(expected, (inputs.hidden, inputs.weight, inputs.bias))
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        loss = function(*inputs[:3], bias=inputs.bias, label_smoothing=smoothing, **options)
        assert_close(loss, expected)
        got = torch.autograd.grad(loss, (inputs.hidden, inputs.weight, inputs.bias))
        for one, other in zip(got, expected_gradients, strict=True):
            assert_close(one, other, rtol=1e-5, atol=1e-6)
    if hasattr(F, "linear_cross_entropy") and not smoothing:  # from torch 2.13 on
        named_alike = F.linear_cross_entropy(*inputs[:3], linear_bias=inputs.bias, **options)
        assert_close(named_alike, expected, rtol=1e-4, atol=1e-5)
