"""`Float8Linear`: close to float32, and exactly the product of the rounded factors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_llm.plugins.precision.float8_linear import Float8Linear, quantize, to_float8

RECIPES = ["tensorwise", "rowwise"]
both_recipes = pytest.mark.parametrize("recipe", RECIPES)
# Dynamo creates one while it traces an autograd function.
traced = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
TOKENS, FEATURES, OUT = 96, 256, 192


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def pair(recipe: Any, bias: bool = True) -> tuple[Float8Linear, nn.Linear]:
    reference = nn.Linear(FEATURES, OUT, bias=bias)
    layer = nn.Linear(FEATURES, OUT, bias=bias)
    layer.load_state_dict(reference.state_dict())
    to_float8(layer, recipe)
    assert isinstance(layer, Float8Linear)
    return layer, reference


@both_recipes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_float32(
    recipe: str, bias: bool, dtype: torch.dtype
) -> None:
    """e4m3 has 3 bits of mantissa, e5m2 has 2: an rms error of 2.6 % and 5.1 % per factor."""
    layer, reference = pair(recipe, bias)
    layer.to(dtype)
    x = torch.randn(4, TOKENS // 4, FEATURES)
    grad = torch.randn(4, TOKENS // 4, OUT)
    inputs = [x.to(dtype, copy=True).requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(inputs[0]), reference(inputs[1])]
    for output in outputs:
        (output.float() * grad).sum().backward()
    assert outputs[0].dtype == torch.bfloat16
    assert relative_error(*outputs) < 0.04
    limit = 0.065 if recipe == "tensorwise" else 0.042
    assert relative_error(inputs[0].grad, inputs[1].grad) < limit
    assert relative_error(layer.weight.grad, reference.weight.grad) < limit
    assert layer.weight.grad.dtype == inputs[0].grad.dtype == dtype
    if bias:
        assert relative_error(layer.bias.grad, reference.bias.grad) < 0.01


def rounded(x: Tensor, largest: float, mantissa_bits: int, rowwise: bool) -> Tensor:
    """What float8 holds of x, by arithmetic in float64 rather than by casting."""
    x = x.double()
    maximum = x.abs().amax(dim=1, keepdim=True) if rowwise else x.abs().amax()
    scale = maximum / largest
    scaled = x / scale
    lowest = -6 if mantissa_bits == 3 else -14  # exponent of the smallest normal number
    exponent = torch.frexp(scaled).exponent.clamp(min=lowest + 1) - 1
    step = 2.0 ** (exponent - mantissa_bits).double()
    return (scaled / step).round() * step * scale


@both_recipes
def test_products_are_those_of_the_rounded_factors(recipe: str) -> None:
    """Sharper than closeness to float32: a scale or factor of the wrong product is off by far."""
    rowwise = recipe == "rowwise"
    layer, _ = pair(recipe, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-2, 2, OUT)[:, None])
    x = (torch.randn(TOKENS, FEATURES) * torch.logspace(-1, 1, TOKENS)[:, None]).bfloat16()
    grad = (torch.randn(TOKENS, OUT) * torch.logspace(-1, 1, TOKENS)[:, None]).bfloat16()
    x.requires_grad_()
    y = layer(x)
    y.backward(grad)
    weight = layer.weight.detach()

    def e4m3(t: Tensor) -> Tensor:
        return rounded(t.detach(), 448, 3, rowwise)

    def gradient(t: Tensor) -> Tensor:
        return rounded(t, 448, 3, True) if rowwise else rounded(t, 57344, 2, False)

    def columns(t: Tensor) -> Tensor:
        return e4m3(t.T).T

    assert relative_error(y, e4m3(x) @ e4m3(weight).T) < 6e-3
    assert relative_error(x.grad, gradient(grad) @ columns(weight)) < 6e-3
    assert relative_error(layer.weight.grad, gradient(grad.T) @ columns(x)) < 6e-3


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("rowwise", [True, False])
def test_the_whole_range_is_used(dtype: torch.dtype, rowwise: bool) -> None:
    x = torch.randn(8, 16) * torch.tensor([1e-20, 1e-3, 1, 1e3, 1e20, 0, 1e-38, 5])[:, None]
    data, scale = quantize(x, dtype, rowwise=rowwise)
    assert data.is_contiguous()
    assert data.float().isfinite().all()
    largest = data.float().abs().amax(dim=1)
    if rowwise:
        assert scale.shape == (8, 1)
        assert (largest[:5] == torch.finfo(dtype).max).all()
        assert largest[5] == 0
    else:
        assert scale.shape == ()
        assert largest.max() == largest[4] == torch.finfo(dtype).max


def test_not_a_number_is_not_hidden() -> None:
    layer, _ = pair("tensorwise")
    x = torch.randn(TOKENS, FEATURES)
    x[3, 4] = torch.nan
    assert layer(x).isnan().any()


@both_recipes
def test_other_numbers_of_tokens(recipe: str) -> None:
    layer, reference = pair(recipe)
    for shape in ((5,), (3, 7), (0,)):
        x = torch.randn(*shape, FEATURES)
        assert layer(x).shape == (*shape, OUT)
        torch.testing.assert_close(layer(x).float(), reference(x), rtol=3e-2, atol=3e-2)
    layer(torch.randn(5, FEATURES)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@both_recipes
def test_frozen_sides_get_no_gradient(recipe: str) -> None:
    layer, _ = pair(recipe)
    layer.weight.requires_grad_(False)
    x = torch.randn(TOKENS, FEATURES, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


@traced
@both_recipes
def test_it_compiles_into_one_graph(recipe: str) -> None:
    torch.compiler.reset()
    layer, _ = pair(recipe)
    x = torch.randn(TOKENS, FEATURES)
    expected = layer(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)
    layer.zero_grad()
    compiled(x).sum().backward()
    found = layer.weight.grad.clone()
    layer.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(found, layer.weight.grad, rtol=0, atol=0)
    torch.compiler.reset()


@both_recipes
def test_activations_kept_for_the_backward_pass(recipe: str) -> None:
    layer, _ = pair(recipe, bias=False)
    kept: list[tuple[torch.Size, torch.dtype]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append((tensor.shape, tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(TOKENS, FEATURES, requires_grad=True))
    dtype = torch.float8_e4m3fn if recipe == "tensorwise" else torch.bfloat16
    assert (torch.Size((TOKENS, FEATURES)), dtype) in kept


@pytest.mark.gpu
@both_recipes
def test_the_gpu_gives_the_numbers_of_the_cpu(recipe: str) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the GPU has no float8 arithmetic")
    layer, _ = pair(recipe)
    x = torch.randn(TOKENS, FEATURES)
    grad = torch.randn(TOKENS, OUT).bfloat16()
    results = []
    for device in ("cpu", "cuda"):
        layer.to(device).zero_grad()
        inputs = x.to(device, copy=True).requires_grad_()
        output = layer(inputs)
        output.backward(grad.to(device))
        results.append([t.cpu() for t in (output, inputs.grad, layer.weight.grad)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 6e-3
