"""Stochastic rounding to bfloat16: to a neighbour, and right on average."""

from __future__ import annotations

import torch

from lightning_llm.plugins.precision.rounding import round_stochastically


def test_expectation_is_the_value() -> None:
    values = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 1e-30, 0.3, -0.7])
    rounded = round_stochastically(values.expand(200_000, -1).contiguous()).double()
    step = 2.0 ** (torch.frexp(values).exponent - 8).double()  # between neighbours
    assert ((rounded - values.double()).abs() < step).all()
    # The mean of n draws is within 5 standard deviations, each at most half a step.
    assert ((rounded.mean(dim=0) - values.double()).abs() < 5 * step / 2 / 200_000**0.5).all()
    assert (rounded.std(dim=0) > 0.1 * step).all()


def test_what_bfloat16_holds_is_left_alone() -> None:
    values = torch.randn(1000).bfloat16().float()
    assert torch.equal(round_stochastically(values).float(), values)


def test_infinities_and_every_nan_stay() -> None:
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800000, -0x00800000], dtype=torch.int32)
    values = bits.view(torch.float32).expand(1000, -1).contiguous()
    rounded = round_stochastically(values)
    assert rounded[:, :3].isnan().all()
    assert (rounded[:, 3] == torch.inf).all()
    assert (rounded[:, 4] == -torch.inf).all()


def test_noise_comes_from_the_generator() -> None:
    values = torch.rand(1000)
    first, second = (
        round_stochastically(values, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, round_stochastically(values, torch.Generator().manual_seed(2)))
