"""What the chunked loss is for: no whole logits, no waiting for the device, no graph break."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_oracle import Problem, expected_rows, problem, value_and_gradients
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_llm.losses import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_cross_entropy_with_nll,
)
from lightning_llm.losses.chunks import Wanted, auto_chunk_size, chunked_cross_entropy
from lightning_llm.losses.softmax_rows import LossTerms

OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-3, "logit_softcap": 20.0}


def allocations(call: Callable[[], Any]) -> tuple[int, int]:
    """Peak and largest single allocation of a call in bytes, from the CPU allocator's own log."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    running = list(itertools.accumulate(size for _, size in sorted(events)))
    return max(running), max(size for _, size in events)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "all_terms"])
def test_whole_logits_never_exist(dtype: torch.dtype, options: dict[str, Any]) -> None:
    n, d, v, chunk_size = 512, 16, 8000, 32
    inputs = problem(n, d, v, dtype)

    def step(loss: Callable[..., Tensor], **extra: Any) -> None:
        loss(*inputs[:3], bias=inputs.bias, **options, **extra).backward()
        inputs.hidden.grad = inputs.weight.grad = inputs.bias.grad = None

    peak, largest = allocations(lambda: step(linear_cross_entropy, chunk_size=chunk_size))
    chunk = chunk_size * v * 4
    assert largest <= chunk
    # Gradient or part of it, its float32 sum, a chunk and as much again for what a step needs.
    assert peak < v * d * 6 + 3 * chunk
    plain_peak, plain_largest = allocations(lambda: step(linear_cross_entropy_reference))
    assert plain_largest >= n * v * 4  # the measurement does see whole logits
    assert peak < plain_peak / 10


def test_memory_is_a_fraction_of_the_plain_loss_at_a_workload_size() -> None:
    """16-bit weights: the gradients, a chunk of logits and little else."""
    n, d, v = 1024, 64, 32_000
    inputs = problem(n, d, v, torch.bfloat16)
    peak, _ = allocations(lambda: linear_cross_entropy(*inputs[:3]).backward())
    inputs.hidden.grad = inputs.weight.grad = None
    plain, _ = allocations(lambda: linear_cross_entropy_reference(*inputs[:3]).backward())
    gradients = (v + n) * d * 2
    assert peak < gradients + 1.1 * 13 * 2**20 * 2
    assert peak < plain / 7


@pytest.mark.parametrize("chunk_size", [512, 64, 30, 4])
def test_sums_of_16_bit_gradients_stay_close_to_one_product(chunk_size: int) -> None:
    """Every gradient points the same way, so that every rounding is one of a growing sum."""
    inputs = problem(512, 16, 200, torch.bfloat16)
    with torch.no_grad():
        inputs.hidden.add_(1.0)
        inputs.labels[:] = 0
    exact = inputs.to(torch.float64)
    expected = torch.autograd.grad(expected_rows(exact, with_bias=False).sum(), exact.weight)[0]

    def error(**options: Any) -> float:
        loss = linear_cross_entropy(*inputs[:3], reduction="sum", **options)
        gradient = torch.autograd.grad(loss, inputs.weight)[0]
        return ((gradient - expected).norm() / expected.norm()).item()

    assert error(chunk_size=chunk_size) < 2.5 * error(chunk_size=512)


def test_no_gradient_memory_without_gradients() -> None:
    inputs = problem(256, 64, 1000, torch.float32)
    with torch.no_grad():
        _, largest = allocations(lambda: linear_cross_entropy(*inputs[:3], chunk_size=8))
    assert largest < inputs.weight.numel() * 4


@pytest.mark.parametrize(
    ("num_tokens", "vocab_size", "dtype", "device", "expected"),
    [
        (0, 32_000, torch.float32, "cpu", 1),
        (100, 32_000, torch.float32, "cpu", 100),
        (2048, 32_000, torch.float32, "cpu", 416),
        (2048, 32_000, torch.bfloat16, "cpu", 416),
        (1024, 50_304, torch.bfloat16, "cpu", 256),
        (16_384, 32_000, torch.bfloat16, "cpu", 512),
        (2048, 10**6, torch.float32, "cpu", 128),
        (16_384, 50_304, torch.bfloat16, "cuda", 8192),
        (65_536, 10**6, torch.bfloat16, "cuda", 2048),
    ],
)
def test_auto_chunk_size(
    num_tokens: int, vocab_size: int, dtype: torch.dtype, device: str, expected: int
) -> None:
    assert auto_chunk_size(num_tokens, vocab_size, dtype, device) == expected


def test_auto_chunks_cover_uneven_batches() -> None:
    for num_tokens in range(1, 3000, 7):
        size = auto_chunk_size(num_tokens, 50_257, torch.float32, "cpu")
        assert size * 50_257 <= 16 * 2**20
        chunks = -(-num_tokens // size)
        assert (chunks - 1) * size < num_tokens


def test_nothing_is_read_back_from_the_device() -> None:
    """Meta tensors have no values: reading one raises."""
    inputs = problem(20, 4, 9, torch.bfloat16)
    hidden, weight, labels, bias = (tensor.detach().to("meta") for tensor in inputs)
    terms = LossTerms(-100, 0.1, 0.1, 5.0)
    everything = Wanted(hidden=True, weight=True, bias=True)
    loss, nll, gradients = chunked_cross_entropy(
        hidden, weight, labels, bias, None, terms, 6, torch.bfloat16, everything
    )
    assert loss.shape == nll.shape == (20,)
    assert [gradient.shape for gradient in gradients] == [(20, 4), (9, 4), (9,)]


class _CountReads(TorchDispatchMode):
    """Counts operators that wait for the device to learn a value."""

    names = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item"})

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func.overloadpacket.__name__ in self.names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_forward_and_backward_wait_for_nothing(reduction: Any) -> None:
    inputs = problem(dtype=torch.float32)
    with _CountReads() as counter:
        linear_cross_entropy(*inputs[:3], reduction=reduction).sum().backward()
    assert counter.reads == 0
    with counter:
        inputs.hidden.sum().item()
    assert counter.reads == 1


def _compiled_loss(inputs: Problem, reduction: Any) -> Tensor:
    hidden = inputs.hidden * 2.0
    return linear_cross_entropy(
        hidden, inputs.weight, inputs.labels, bias=inputs.bias, reduction=reduction, **OPTIONS
    )


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_caller_has_no_graph_break(reduction: Any, autocast: bool) -> None:
    inputs = problem(dtype=torch.float32)
    factors = torch.tensor(1.5)
    compiled = torch.compile(_compiled_loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = value_and_gradients(compiled(inputs, reduction), inputs, factors)
        expected = value_and_gradients(_compiled_loss(inputs, reduction), inputs, factors)
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_compiled_caller_with_other_numbers_of_tokens() -> None:
    compiled = torch.compile(
        linear_cross_entropy_with_nll, fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n in (5, 9, 12):
        inputs = problem(n)
        loss, nll = compiled(*inputs[:3], bias=inputs.bias)
        assert_close(loss, expected_rows(inputs).sum())
        assert_close(nll, loss.detach())


def test_the_operators_are_well_formed() -> None:
    """Schema, fake kernels and autograd registration, by torch's own checker."""
    inputs = problem(7, 3, 5)
    tensors = (*inputs[:3], inputs.bias)
    options = (-100, 0.1, 1e-2, 3.0, 2, torch.float64)
    operators = torch.ops.lightning_llm
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    sums = (*tensors, None, *options, True, True, True)
    torch.library.opcheck(operators.linear_cross_entropy_sum, sums, test_utils=checks)
    torch.library.opcheck(
        operators.linear_cross_entropy_rows, (*tensors, *options), test_utils=checks
    )


def test_triton_rows_in_the_interpreter() -> None:
    """The GPU kernel on the CPU, in a process of its own: Triton reads its mode once."""
    pytest.importorskip("triton", reason="Triton does not come with torch for the CPU")
    script = Path(__file__).with_name("check_triton_rows.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "cpu"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_triton_rows_on_the_gpu() -> None:
    from check_triton_rows import check

    check("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "all_terms"])
@pytest.mark.parametrize("v", [4096, 50_257])
def test_gpu_equals_float64(dtype: torch.dtype, options: dict[str, Any], v: int) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    on_host = problem(600, 64, v, dtype)
    exact = on_host.to(torch.float64)
    expected = value_and_gradients(expected_rows(exact, **options).sum(), exact, torch.tensor(1.0))
    device = Problem(*(tensor.detach().cuda() for tensor in on_host)).to(dtype)
    loss = linear_cross_entropy(
        *device[:3], bias=device.bias, reduction="sum", chunk_size=256, **options
    )
    got = value_and_gradients(loss, device, torch.tensor(1.0, device="cuda"))
    limit = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    for one, other in zip(got, expected, strict=True):
        assert ((one.cpu().double() - other).norm() / other.norm()).item() < limit
