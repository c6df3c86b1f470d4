"""Backends of the loss: values and gradients, refusals by name."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from loss_oracle import Problem, expected_rows, problem, reduced, value_and_gradients
from torch import Tensor
from torch.nn import functional as F

from lightning_llm.losses import (
    backends,
    linear_cross_entropy,
    linear_cross_entropy_with_nll,
)
from lightning_llm.losses import linear_cross_entropy_reference as plain_loss
from lightning_llm.losses.backends import Request

has_torch_backend = pytest.mark.skipif(
    backends.absence("torch") is not None, reason=str(backends.absence("torch"))
)


def relative_errors(
    inputs: Problem, reduction: str, *, with_bias: bool = True, **options: Any
) -> list[float]:
    """Of loss and gradients, against float64 on the same numbers."""
    exact = Problem(*(tensor.detach().cpu() for tensor in inputs)).to(torch.float64)
    known = {name: options[name] for name in ("z_loss", "logit_softcap") if name in options}
    known |= {k: options[k] for k in ("label_smoothing", "ignore_index") if k in options}
    rows = expected_rows(exact, with_bias=with_bias, **known)
    ignored = options.get("ignore_index", -100)
    total = reduced(rows, exact.labels, reduction, ignored)
    factors = torch.linspace(0.5, 1.5, len(rows)) if reduction == "none" else torch.tensor(1.75)
    expected = value_and_gradients(total, exact, factors.double())
    loss = linear_cross_entropy(
        *inputs[:3], bias=inputs.bias if with_bias else None, reduction=reduction, **options
    )
    got = value_and_gradients(loss, inputs, factors.to(loss.device))
    last = None if with_bias else -1
    pairs = list(zip(got, expected, strict=True))[:last]
    return [((a.cpu().double() - b).norm() / b.norm().clamp(min=1e-9)).item() for a, b in pairs]


@has_torch_backend
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torch_equals_float64(reduction: str, chunk_size: int | None, dtype: torch.dtype) -> None:
    inputs = problem(dtype=dtype)
    errors = relative_errors(inputs, reduction, backend="torch", chunk_size=chunk_size)
    assert max(errors) < (1e-6 if dtype == torch.float32 else 1e-12)


@has_torch_backend
def test_torch_with_everything_masked() -> None:
    inputs = problem(dtype=torch.float32)
    loss = linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels * 0 - 100, reduction="mean", backend="torch"
    )
    loss.backward()
    assert loss.item() == 0.0
    assert inputs.hidden.grad.abs().max() == inputs.weight.grad.abs().max() == 0.0


@has_torch_backend
def test_likelihood_beside_the_loss_of_another_backend() -> None:
    inputs = problem(dtype=torch.float32)
    loss, nll = linear_cross_entropy_with_nll(*inputs[:3], backend="torch")
    assert loss.requires_grad
    assert not nll.requires_grad
    assert loss.item() == nll.item()
    assert nll.item() == pytest.approx(expected_rows(inputs, with_bias=False).sum().item())


INPUTS = problem(6, 4, 9, torch.float32)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("torch", {"z_loss": 0.1}, r"backend='torch' does not support z_loss=0.1; .*'chunked'"),
        ("torch", {"label_smoothing": 0.1}, "does not support label_smoothing=0.1"),
        ("torch", {"logit_softcap": 3.0}, "does not support logit_softcap=3.0"),
        ("cce", {"bias": INPUTS.bias}, r"'cce' does not support bias, a tensor of shape \(9,\)"),
        ("cce", {"chunk_size": 2}, "does not support chunk_size=2"),
        ("cce", {"z_loss": 0.1}, "does not support z_loss=0.1"),
        ("cce", {}, "backend='cce' needs a CUDA device, and hidden is on device 'cpu'"),
        ("liger", {"reduction": "none"}, "'liger' does not support reduction='none'"),
        ("liger", {}, "needs a CUDA device"),
        ("flash", {}, "backend='flash' must be one of .*'auto', 'chunked', 'torch'"),
    ],
)
def test_refusals(backend: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*INPUTS[:3], backend=backend, **options)  # type: ignore[arg-type]


def test_torch_refuses_16_bits() -> None:
    """It rounds the loss to them."""
    inputs = INPUTS.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"'torch' does not compute the loss .*torch.bfloat16"):
        linear_cross_entropy(*inputs[:3], backend="torch")
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"in dtype torch.bfloat16"),
    ):
        linear_cross_entropy(*INPUTS[:3], backend="torch")


def test_no_likelihood_beside_a_smoothed_loss_of_another_backend() -> None:
    for options in ({"label_smoothing": 0.1}, {"z_loss": 0.1}):
        with pytest.raises(ValueError, match=rf"beside a loss with {next(iter(options))}=0.1"):
            linear_cross_entropy_with_nll(*INPUTS[:3], backend="liger", **options)
        loss, nll = linear_cross_entropy_with_nll(*INPUTS[:3], **options)  # auto
        assert loss.item() != nll.item()


@pytest.mark.parametrize(("name", "package"), [("liger", "liger_kernel"), ("cce", "cut_cross_")])
def test_a_missing_package_names_the_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    request = Request("cuda", torch.bfloat16, "sum", -100, {})
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*lightning-llm\[{name}\]"):
        backends.require(name, request)


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"came with 2.13: upgrade torch"):
        linear_cross_entropy(*INPUTS[:3], backend="torch")


# ---------------------------------------------------------------- adapters, with stand-ins


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, function: str, call: Any) -> None:
    """Puts a module with one function where an optional package would be."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    setattr(sys.modules[module], function, call)


def test_cce_is_called_for_the_exact_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(e: Tensor, c: Tensor, targets: Tensor, **options: Any) -> Tensor:
        assert options.pop("filter_eps") is None
        assert not torch.is_autocast_enabled("cpu")
        options["logit_softcap"] = options.pop("softcap")
        return plain_loss(e, c, targets, **options)

    stand_in(monkeypatch, "cut_cross_entropy", "linear_cross_entropy", fake)
    request = Request("cpu", torch.bfloat16, "mean", -100, {"logit_softcap": 3.0})
    inputs = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = backends.run_backend("cce", *inputs[:3], request)
    expected = expected_rows(inputs, with_bias=False, logit_softcap=3.0).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    (gradient,) = torch.autograd.grad(loss, inputs.weight)
    assert gradient.dtype == torch.float32  # of the weight, not of the products


def test_liger_is_called_with_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(hidden: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Tensor:
        assert hidden.requires_grad  # or Liger forgets the gradient of the weight
        assert options.pop("accum_dtype") == torch.float32
        options["logit_softcap"] = options.pop("softcap")
        options["z_loss"] = options.pop("lse_square_scale")
        return plain_loss(hidden, weight, target, **options)

    stand_in(
        monkeypatch,
        "liger_kernel.transformers.functional",
        "liger_fused_linear_cross_entropy",
        fake,
    )
    options = {"label_smoothing": 0.1, "z_loss": 1e-2, "logit_softcap": 3.0}
    inputs = problem(dtype=torch.float32)
    request = Request("cpu", torch.float32, "mean", -100, {"bias": inputs.bias, **options})
    loss = backends.run_backend("liger", inputs.hidden.detach(), *inputs[1:3], request)
    assert loss.item() == pytest.approx(expected_rows(inputs, **options).sum().item())
    assert torch.autograd.grad(loss, inputs.weight)[0].abs().max() > 0


def _importable(name: str) -> Any:
    """The package, or a skip that says what is missing (Triton, for one, off a GPU)."""
    return pytest.importorskip(name, reason=f"{name} is not importable", exc_type=ImportError)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_cce_in_its_torch_compile_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own function behind the adapter, in the implementation that runs anywhere."""
    package = _importable("cut_cross_entropy")
    original = package.linear_cross_entropy

    def compiled(*tensors: Tensor, **options: Any) -> Tensor:
        return original(*tensors, impl="torch_compile", **options)

    monkeypatch.setattr(package, "linear_cross_entropy", compiled)
    inputs = problem(dtype=torch.float32)
    request = Request("cpu", torch.float32, "sum", -100, {"logit_softcap": 3.0})
    loss = backends.run_backend("cce", *inputs[:3], request)
    exact = inputs.to(torch.float64)
    expected = expected_rows(exact, with_bias=False, logit_softcap=3.0).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    got = torch.autograd.grad(loss, (inputs.hidden, inputs.weight))
    for one, other in zip(
        got, torch.autograd.grad(expected, (exact.hidden, exact.weight)), strict=True
    ):
        assert ((one - other).norm() / other.norm()).item() < 1e-5


@pytest.mark.parametrize("all_options", [False, True])
def test_liger_in_the_interpreter(all_options: bool) -> None:
    """Liger's kernels on the CPU, where the environment has Triton in its interpreter mode."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("set TRITON_INTERPRET=1, with triton installed, to run Liger on a CPU")
    _importable("liger_kernel.transformers.functional")
    options = {"label_smoothing": 0.1, "z_loss": 1e-2} if all_options else {}
    inputs = problem(dtype=torch.float32)
    extras = options | ({"bias": inputs.bias} if all_options else {})
    request = Request("cpu", torch.float32, "sum", -100, extras)
    loss = backends.run_backend("liger", *inputs[:3], request)
    exact = inputs.to(torch.float64)
    expected = expected_rows(exact, with_bias=all_options, **options).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    got = torch.autograd.grad(loss * 1.75, (inputs.hidden, inputs.weight))
    for one, other in zip(
        got, torch.autograd.grad(expected * 1.75, (exact.hidden, exact.weight)), strict=True
    ):
        assert ((one - other).norm() / other.norm()).item() < 1e-5


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["chunked", "torch", "liger", "cce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_gpu_backend_equals_float64(name: str, dtype: torch.dtype, softcap: float | None) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    extras = {} if softcap is None else {"logit_softcap": softcap}
    if name != "chunked":
        request = Request("cuda", dtype, "sum", -100, extras)
        if reason := backends.refusal(name, request) or backends.absence(name):
            pytest.skip(f"{name} {reason}")
    on_host = problem(512, 128, 4096, dtype)
    inputs = Problem(*(tensor.detach().cuda() for tensor in on_host)).to(dtype)
    errors = relative_errors(
        inputs,
        "mean",
        with_bias=False,
        backend=name,
        **extras,
    )
    assert max(errors) < (1e-5 if dtype == torch.float32 else 2e-2)
