"""Learning-rate schedules: their values, their joins, their end, and resuming."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_llm.optim import AdamW, WarmupCosine, WarmupStableDecay

Schedule = WarmupCosine | WarmupStableDecay
CLASSES = [WarmupCosine, WarmupStableDecay]


def optimizer(lr: float = 1.0) -> AdamW:
    return AdamW([{"params": [nn.Parameter(torch.ones(2))]}], lr=lr)


def run(opt: Optimizer, schedule: Schedule, steps: int) -> list[float]:
    """Learning rates that ``steps`` optimizer steps really use."""
    rates = []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return rates


def rates(make: Callable[..., Schedule], steps: int, **options: Any) -> list[float]:
    opt = optimizer()
    return run(opt, make(opt, **options), steps)


def test_warmup_cosine_values() -> None:
    got = rates(WarmupCosine, 12, warmup_steps=3, max_steps=11, min_lr_ratio=0.2)
    cosine = [0.2 + 0.8 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(9)]
    assert got == pytest.approx([0.25, 0.5, 0.75, *cosine])
    assert got[3] == 1.0
    assert got[-1] == 0.2


@pytest.mark.parametrize(
    ("shape", "decay"),
    [
        ("linear", lambda x: 1 - x),
        ("sqrt", lambda x: 1 - math.sqrt(x)),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
    ],
)
def test_warmup_stable_decay_values(shape: Any, decay: Callable[[float], float]) -> None:
    options = {"warmup_steps": 1, "max_steps": 10, "decay_fraction": 0.4, "min_lr_ratio": 0.1}
    got = rates(WarmupStableDecay, 11, decay_shape=shape, **options)
    tail = [0.1 + 0.9 * decay(t / 4) for t in range(5)]
    assert got == pytest.approx([0.5, *[1.0] * 5, *tail])


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("warmup", [0, 1, 7, 0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 5, 20, 1000])
def test_defined_finite_and_without_jumps_at_every_step(
    make: type[Schedule], warmup: float, total: int
) -> None:
    schedule = make(optimizer(), warmup_steps=warmup)
    schedule.set_total_steps(total)
    factors = [schedule.factor(step) for step in range(3 * total + 10)]
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0
    assert len(set(factors[total:])) == 1
    if total == 1000:
        warmup_length = round(warmup * total) if 0 < warmup < 1 else warmup
        decay_length = min(total - warmup_length, 200)
        largest = max(abs(b - a) for a, b in itertools.pairwise(factors))
        bound = max(1 / (warmup_length + 1), math.pi / 2 / decay_length)
        assert largest <= bound * (1 + 1e-9)
        assert max(factors) == 1.0


def test_every_group_keeps_its_own_rate() -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    opt = AdamW([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 1e-3}])
    schedule = WarmupCosine(opt, 3, 10)
    assert [group["lr"] for group in opt.param_groups] == [0.25, 0.25e-3]
    assert schedule.get_last_lr() == [0.25, 0.25e-3]


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("warmup", [2, 0.2])
def test_following_the_run_equals_naming_its_length(make: type[Schedule], warmup: float) -> None:
    opt = optimizer()
    schedule = make(opt, warmup_steps=warmup)
    assert schedule.needs_total_steps
    schedule.set_total_steps(10)
    assert not schedule.needs_total_steps
    assert run(opt, schedule, 13) == rates(make, 13, warmup_steps=warmup, max_steps=10)


def test_a_fractional_warmup_starts_at_nothing_until_the_length_is_known() -> None:
    opt = optimizer()
    schedule = WarmupCosine(opt, warmup_steps=0.5)
    assert opt.param_groups[0]["lr"] == 0.0
    with pytest.raises(RuntimeError, match="WarmupCosine needs the length of the run at step 1"):
        run(opt, schedule, 1)


def test_cosine_beyond_its_warmup_needs_the_length() -> None:
    opt = optimizer()
    schedule = WarmupCosine(opt, warmup_steps=2)
    assert run(opt, schedule, 2) == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(RuntimeError, match=r"at step 3: pass max_steps=, or call set_total_steps"):
        run(opt, schedule, 1)


def test_the_stable_part_needs_no_horizon() -> None:
    opt = optimizer()
    schedule = WarmupStableDecay(opt, warmup_steps=1, decay_fraction=0.5)
    assert run(opt, schedule, 6) == [0.5, 1, 1, 1, 1, 1]
    schedule.set_total_steps(12)
    assert run(opt, schedule, 7) == pytest.approx(
        [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0], abs=1e-12
    )


def test_a_trial_run_ends_within_its_warmup() -> None:
    opt = optimizer()
    schedule = WarmupCosine(opt, warmup_steps=100)
    schedule.set_total_steps(2)
    assert run(opt, schedule, 4) == pytest.approx([1 / 101, 2 / 101, 2 / 101, 2 / 101])


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("max_steps", [None, 20])
def test_resume_is_exact(make: type[Schedule], max_steps: int | None, tmp_path: Any) -> None:
    def start() -> tuple[AdamW, Schedule]:
        opt = optimizer(3e-4)
        return opt, make(opt, warmup_steps=0.2, max_steps=max_steps)

    opt, schedule = start()
    if max_steps is None:
        schedule.set_total_steps(20)
    run(opt, schedule, 9)
    torch.save([opt.state_dict(), schedule.state_dict()], tmp_path / "state")
    expected = run(opt, schedule, 15)

    resumed_opt, resumed = start()
    saved_opt, saved = torch.load(tmp_path / "state", weights_only=True)
    resumed_opt.load_state_dict(saved_opt)
    resumed.load_state_dict(saved)
    assert resumed.needs_total_steps == (max_steps is None)
    assert resumed.get_last_lr() == [resumed_opt.param_groups[0]["lr"]]
    if max_steps is None:
        resumed.set_total_steps(20)
    assert run(resumed_opt, resumed, 15) == expected


def test_a_resumed_run_may_be_longer() -> None:
    opt = optimizer()
    schedule = WarmupCosine(opt, 0)
    schedule.set_total_steps(10)
    run(opt, schedule, 5)
    longer_opt = optimizer()
    longer = WarmupCosine(longer_opt, 0)
    longer.load_state_dict(schedule.state_dict())
    assert longer.factor(5) == schedule.factor(5)  # without a new length, the saved one
    longer.set_total_steps(20)
    assert (
        longer_opt.param_groups[0]["lr"] == rates(WarmupCosine, 6, warmup_steps=0, max_steps=20)[5]
    )


def test_rates_held_as_tensors_stay_the_same_tensor() -> None:
    opt = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=torch.tensor(1.0))
    held = opt.param_groups[0]["lr"]
    schedule = WarmupCosine(opt, warmup_steps=3)
    schedule.set_total_steps(8)
    opt.step()
    schedule.step()
    assert opt.param_groups[0]["lr"] is held
    assert held.item() == 0.5
    assert schedule.state_dict()["_last_lr"] == [0.5]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (WarmupCosine, {"warmup_steps": -1}, r"WarmupCosine: warmup_steps=-1 must be a whole"),
        (WarmupCosine, {"warmup_steps": 2.5}, r"warmup_steps=2.5 must be a whole number of steps"),
        (WarmupCosine, {"warmup_steps": math.nan}, r"warmup_steps=nan must be"),
        (WarmupCosine, {"warmup_steps": 9, "max_steps": 9}, r"=9 must be below max_steps=9"),
        (WarmupCosine, {"max_steps": 0}, r"max_steps=0 must be a positive whole number"),
        (WarmupCosine, {"max_steps": 1.5}, r"max_steps=1.5 must be a positive whole number"),
        (WarmupCosine, {"min_lr_ratio": 1.1}, r"min_lr_ratio=1.1 must be between 0 and 1"),
        (WarmupStableDecay, {"decay_fraction": -0.1}, r"decay_fraction=-0.1 must be between"),
        (WarmupStableDecay, {"min_lr_ratio": -1}, r"StableDecay: min_lr_ratio=-1 must be between"),
        (WarmupStableDecay, {"decay_shape": "exp"}, r"decay_shape='exp' must be one of"),
    ],
)
def test_misuse(make: type[Schedule], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(optimizer(), **options)


def test_misuse_of_the_length() -> None:
    schedule = WarmupCosine(optimizer(), 1, max_steps=10)
    with pytest.raises(ValueError, match=r"set_total_steps\(20\) contradicts max_steps=10"):
        schedule.set_total_steps(20)
    schedule.set_total_steps(10)
    with pytest.raises(ValueError, match="n=0 must be a positive whole number"):
        schedule.set_total_steps(0)
