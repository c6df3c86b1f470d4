"""The private names of torch that this package needs, each behind a function.

A canary test in ``tests/runtime/test_torch_api.py`` fails where a release of torch renames one.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from typing import Any

from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)


def parts_of_schedule(scheduler: Any) -> list[Any]:
    """Return the schedules that one is put together from; none where it is a single one."""
    return list(getattr(scheduler, "_schedulers", ()))


def rates_by_formula(scheduler: Any) -> list[Any] | None:
    """Return the learning rates of the current position; None where they follow from the last.

    Most schedules of torch multiply the rate of the step before. Where there is a formula of the
    position as well, it gives the rates after a base rate or an argument has changed.
    """
    if isinstance(scheduler, SequentialLR):
        parts = parts_of_schedule(scheduler)
        return rates_by_formula(parts[bisect_right(scheduler._milestones, scheduler.last_epoch)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not asked for in a step, which is so
        if hasattr(scheduler, "_get_closed_form_lr"):
            return list(scheduler._get_closed_form_lr())
        if isinstance(scheduler, CosineAnnealingWarmRestarts):
            # T_0 may have changed, and with it where in its cycle the position lies.
            scheduler.T_i = scheduler.T_0
            scheduler.step(scheduler.last_epoch)
            return [group["lr"] for group in scheduler.optimizer.param_groups]
        if isinstance(scheduler, (LambdaLR, OneCycleLR, CyclicLR)):
            return list(scheduler.get_lr())
    return None


def is_schedule_of_torch(scheduler: Any) -> bool:
    """Whether all attributes but its progress follow from the arguments of the constructor."""
    return type(scheduler).__module__ == LRScheduler.__module__
