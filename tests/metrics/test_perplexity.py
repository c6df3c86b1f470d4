"""Perplexity and BitsPerByte against Python floats, and independent of the split."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_llm.metrics import BitsPerByte, Perplexity

NLL = [3.5, 0.25, 12.0, 7.75]
TOKENS = [2, 1, 5, 3]


def expected(metric: Any, nll: float, count: int) -> float:
    is_perplexity = isinstance(metric, Perplexity)
    return math.exp(nll / count) if is_perplexity else nll / (count * math.log(2))


@pytest.fixture(params=[Perplexity, BitsPerByte])
def metric(request: Any) -> Any:
    return request.param()


def fill(metric: Any, nll: list[Any], tokens: list[Any]) -> Any:
    for pair in zip(nll, tokens):
        metric.update(*pair)
    return metric


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors(metric: Any, dtype: torch.dtype) -> None:
    fill(metric, [torch.tensor(x, dtype=dtype) for x in NLL], [torch.tensor(n) for n in TOKENS])
    value = metric.compute()
    assert value.dtype is torch.float64
    assert value.shape == ()
    assert value.item() == expected(metric, sum(NLL), sum(TOKENS))


def test_numbers(metric: Any) -> None:
    value = fill(metric, NLL, TOKENS).compute().item()
    assert value == expected(metric, sum(NLL), sum(TOKENS))


def test_a_tensor_of_several_is_summed(metric: Any) -> None:
    metric.update(torch.tensor(NLL), torch.tensor(TOKENS))
    assert metric.compute().item() == expected(metric, sum(NLL), sum(TOKENS))


def test_the_split_does_not_matter(metric: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(1000, generator=generator, dtype=torch.float64) * 10
    for pieces in (1, 7, 1000):
        metric.reset()
        for part in nll.chunk(pieces):
            metric.update(part.sum(), len(part))
        value = metric.compute().item()
        assert value == pytest.approx(expected(metric, math.fsum(nll.tolist()), 1000), rel=1e-12)


def test_many_small_batches_lose_nothing(metric: Any) -> None:
    """In float32 the sum would stop growing here."""
    metric.update(2.0**25, 2**25)
    for _ in range(1000):
        metric.update(torch.tensor(1.0), torch.tensor(2))
    assert metric.compute().item() == expected(metric, 2.0**25 + 1000, 2**25 + 2000)


def test_unlikely_text_is_finite() -> None:
    metric = Perplexity()
    metric.update(700.0, 1)
    assert metric.compute().item() == math.exp(700)
    metric.update(1e6, 1)
    assert metric.compute().item() == math.inf


def test_nothing_is_nan(metric: Any) -> None:
    metric.update(0.0, 0)
    assert math.isnan(metric.compute().item())


def test_parts_merge(metric: Any) -> None:
    other = fill(type(metric)(), NLL[2:], TOKENS[2:])
    fill(metric, NLL[:2], TOKENS[:2]).merge_state(other)
    assert metric.compute().item() == expected(metric, sum(NLL), sum(TOKENS))


@pytest.mark.parametrize("kind", [Perplexity, BitsPerByte])
def test_ranks_are_summed(kind: Any) -> None:
    other = {"first": iter([torch.tensor(x, dtype=torch.float64) for x in (5.0, 4.0)])}

    def gather(value: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        return [value, next(other["first"])]

    metric = kind(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(3.0, 2)
    assert metric.compute().item() == pytest.approx(expected(metric, 8.0, 6), rel=1e-15)


def test_updates_do_not_make_the_host_wait(metric: Any) -> None:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.count += func.name() in ("aten::_local_scalar_dense", "aten::is_nonzero")
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        fill(metric, [torch.tensor(x) for x in NLL], [torch.tensor(n) for n in TOKENS])
    assert reads.count == 0


def test_gradients_are_not_kept(metric: Any) -> None:
    metric.update(torch.tensor(2.0, requires_grad=True) * 1, 2)
    assert not metric.numerator.requires_grad


def test_half_of_the_module_does_not_touch_the_sums(metric: Any) -> None:
    module = torch.nn.Module()
    module.metric = metric
    module.bfloat16()
    assert metric.numerator.dtype is torch.float64


def test_a_device_without_float64_leaves_the_sums_on_the_cpu(metric: Any) -> None:
    def to_mps(tensor: torch.Tensor) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework ...")

    fill(metric, NLL, TOKENS)._apply(to_mps)
    assert metric.compute().item() == expected(metric, sum(NLL), sum(TOKENS))


@pytest.mark.gpu
def test_the_sums_follow_the_values_to_the_gpu(metric: Any) -> None:
    fill(metric, [torch.tensor(x, device="cuda") for x in NLL], TOKENS)
    assert metric.numerator.device.type == "cuda"
    metric.update(torch.tensor(1.0), torch.tensor(1))
    value = metric.compute().item()
    assert value == pytest.approx(expected(metric, sum(NLL) + 1, sum(TOKENS) + 1), rel=1e-12)
