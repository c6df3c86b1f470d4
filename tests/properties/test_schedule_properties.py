"""Learning rates at every step of any run: finite, without jumps, the same after a resume."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_llm.optim import AdamW, WarmupCosine, WarmupStableDecay

TOTALS = st.integers(2, 60)


def built(kind: str, total: int, warmup: float, decay: float, floor: float):
    optimizer = AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if kind == "cosine":
        schedule = WarmupCosine(optimizer, warmup_steps=warmup, min_lr_ratio=floor)
    else:
        schedule = WarmupStableDecay(
            optimizer, warmup_steps=warmup, decay_fraction=decay, min_lr_ratio=floor
        )
    schedule.set_total_steps(total)
    return optimizer, schedule


def step(optimizer, schedule) -> float:
    optimizer.step()
    schedule.step()
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@given(TOTALS, st.floats(0, 0.5), st.floats(0.05, 0.5), st.floats(0, 1), st.data())
def test_any_run(kind, total, warmup, decay, floor, data):
    optimizer, schedule = built(kind, total, warmup, decay, floor)
    rates = [optimizer.param_groups[0]["lr"]]
    rates += [step(optimizer, schedule) for _ in range(total)]
    assert all(math.isfinite(rate) and 0 <= rate <= 1 + 1e-12 for rate in rates)
    # No jump: neither half of a run covers the range in one step unless it has one step only.
    steepest = max(1 / max(1, round(warmup * total)), math.pi / 2 / max(1, total * decay - 1))
    assert max(abs(a - b) for a, b in pairwise(rates)) <= max(steepest, math.pi / total) + 1e-9

    place = data.draw(st.integers(0, total - 1))
    optimizer, schedule = built(kind, total, warmup, decay, floor)
    for _ in range(place):
        step(optimizer, schedule)
    resumed_optimizer, resumed = built(kind, total, warmup, decay, floor)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    rest = [step(resumed_optimizer, resumed) for _ in range(total - place)]
    assert rest == rates[place + 1 :]
