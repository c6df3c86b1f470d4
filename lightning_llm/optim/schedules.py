"""Learning-rate schedules, as factors of every group's own learning rate.

A schedule is a closed formula of the step: nothing accumulates, so a resumed run has bit for bit
the learning rates of an uninterrupted one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal, get_args

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_llm.errors import InvalidValueError

DecayShape = Literal["linear", "sqrt", "cosine"]


class _WarmupSchedule(LRScheduler):
    """Linear warm-up, then whatever the subclass does with the rest of a run of known length.

    Args:
        optimizer: the optimizer; the factors multiply each group's own learning rate.
        warmup_steps: steps before the full rate, or their fraction of the run if below 1.
        max_steps: optimizer steps of the whole run; None until :meth:`set_total_steps`.

    Attributes:
        needs_total_steps: True until someone has told this object the length of the run. A length
            from a checkpoint does not count: the run may have been extended.
        total_steps: the length, or None.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int | float, max_steps: int | None
    ) -> None:
        name = type(self).__name__
        if not 0 <= warmup_steps < math.inf or (warmup_steps >= 1 and warmup_steps % 1):
            raise InvalidValueError(
                f"{name}: warmup_steps={warmup_steps} must be a whole number of steps, "
                "or a fraction of the run in [0, 1)"
            )
        if max_steps is not None:
            _check_steps(name, "max_steps", max_steps)
            if warmup_steps >= max_steps:
                raise InvalidValueError(
                    f"{name}: warmup_steps={warmup_steps} must be below max_steps={max_steps}"
                )
        self.warmup_steps = warmup_steps
        self.max_steps = max_steps
        self.total_steps = max_steps
        self.needs_total_steps = max_steps is None
        super().__init__(optimizer)

    def set_total_steps(self, n: int) -> None:
        """Tells the number of optimizer steps of the whole run (of all its restarts together).

        The current learning rates are recomputed with it. A run shorter than its warm-up, such as
        a trial of a few steps, ends within the warm-up.

        Args:
            n: optimizer steps, counted from the start of the run.

        Raises:
            ValueError: ``n`` is no positive whole number, or contradicts ``max_steps``.
        """
        name = type(self).__name__
        _check_steps(name, "n", n)
        if self.max_steps is not None and n != self.max_steps:
            raise InvalidValueError(
                f"{name}: set_total_steps({n}) contradicts max_steps={self.max_steps}; "
                "leave max_steps out to follow the run"
            )
        self.total_steps = n
        self.needs_total_steps = False
        self._apply(self._rates())

    def recompute(self) -> None:
        """Sets the current learning rates anew, after ``base_lrs`` or an argument was changed.

        Without the length of the run nothing is done: setting it does the same.
        """
        if self.total_steps is not None:
            self._apply(self._rates())

    def factor(self, step: int) -> float:
        """Factor of the learning rate at an optimizer step counted from 0, in [0, 1].

        Raises:
            RuntimeError: the length of the run matters at this step and is unknown.
        """
        total = self.total_steps
        warmup: float = self.warmup_steps
        if 0 < warmup < 1:
            if total is None:
                raise self._unknown_length(step)
            warmup = round(warmup * total)
        if total is not None:
            step = min(step, total)
            # At the very end of a run within its warm-up, the last rate stays.
            if total <= warmup:
                step = min(step, total - 1)
        if step < warmup:
            # 1 / (n + 1), ..., n / (n + 1): neither a first step of 0 nor a full rate too early.
            return (step + 1) / (warmup + 1)
        return self._factor_after_warmup(step, int(warmup))

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of every group at the current step."""
        if self._is_initial and self.total_steps is None and 0 < self.warmup_steps < 1:
            # The length may still be set before the first optimizer step. If it never is, the
            # second step raises.
            return [base * 0.0 for base in self.base_lrs]
        return self._rates()

    def state_dict(self) -> dict[str, Any]:
        """Progress as plain data; what the constructor was given is not part of it."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "total_steps": self.total_steps,
            "base_lrs": [_number(rate) for rate in self.base_lrs],
            "_last_lr": [_number(rate) for rate in self._last_lr],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores progress. A length given here, before or after, beats the saved one."""
        known = self.total_steps
        super().load_state_dict(state_dict)
        if not self.needs_total_steps:
            self.total_steps = known

    @abstractmethod
    def _factor_after_warmup(self, step: int, warmup: int) -> float:
        """Factor at ``step >= warmup``; ``step`` never exceeds a known ``total_steps``."""

    def _rates(self) -> list[float | Tensor]:
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def _apply(self, rates: list[float | Tensor]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = list(rates)

    def _unknown_length(self, step: int) -> RuntimeError:
        return RuntimeError(
            f"{type(self).__name__} needs the length of the run at step {step}: "
            "pass max_steps=, or call set_total_steps(n) before the first optimizer step"
        )


class WarmupCosine(_WarmupSchedule):
    """Linear warm-up, then half a cosine down to ``min_lr_ratio`` at the last step.

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, without restarts. Beyond the end
    the rate stays at ``min_lr_ratio``.

    Args:
        optimizer: the optimizer; the factors multiply each group's own learning rate.
        warmup_steps: steps before the full rate, or their fraction of the run if below 1.
        max_steps: optimizer steps of the run; None means as many as the trainer runs.
        min_lr_ratio: last learning rate as a share of the full one.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int | float = 0.01,
        max_steps: int | None = None,
        min_lr_ratio: float = 0.1,
    ) -> None:
        _check_ratio(type(self).__name__, "min_lr_ratio", min_lr_ratio)
        self.min_lr_ratio = min_lr_ratio
        super().__init__(optimizer, warmup_steps, max_steps)

    def _factor_after_warmup(self, step: int, warmup: int) -> float:
        if self.total_steps is None:
            if step == warmup:  # the peak, whatever the length
                return 1.0
            raise self._unknown_length(step)
        progress = (step - warmup) / (self.total_steps - warmup)
        return _decay(progress, "cosine", self.min_lr_ratio)


class WarmupStableDecay(_WarmupSchedule):
    """Linear warm-up, a constant rate, and a decay over the last part of the run.

    The constant part needs no horizon: as long as the length is unknown it goes on, and
    ``set_total_steps`` may come later. MiniCPM, https://arxiv.org/abs/2404.06395; the ``"sqrt"``
    shape ``1 - sqrt(x)`` is from Hägele et al. 2024, https://arxiv.org/abs/2405.18392.

    Args:
        optimizer: the optimizer; the factors multiply each group's own learning rate.
        warmup_steps: steps before the full rate, or their fraction of the run if below 1.
        max_steps: optimizer steps of the run; None means as many as the trainer runs.
        decay_fraction: share of the run that decays, at its end.
        min_lr_ratio: last learning rate as a share of the full one.
        decay_shape: ``"linear"``, ``"sqrt"`` or ``"cosine"``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int | float = 0.01,
        max_steps: int | None = None,
        decay_fraction: float = 0.2,
        min_lr_ratio: float = 0.0,
        decay_shape: DecayShape = "linear",
    ) -> None:
        name = type(self).__name__
        _check_ratio(name, "decay_fraction", decay_fraction)
        _check_ratio(name, "min_lr_ratio", min_lr_ratio)
        if decay_shape not in get_args(DecayShape):
            raise InvalidValueError(
                f"{name}: decay_shape={decay_shape!r} must be one of {get_args(DecayShape)}"
            )
        self.decay_fraction = decay_fraction
        self.min_lr_ratio = min_lr_ratio
        self.decay_shape: DecayShape = decay_shape
        super().__init__(optimizer, warmup_steps, max_steps)

    def _factor_after_warmup(self, step: int, warmup: int) -> float:
        total = self.total_steps
        if total is None:
            return 1.0
        start = max(warmup, total - round(self.decay_fraction * total))
        if step <= start:
            return 1.0
        return _decay((step - start) / (total - start), self.decay_shape, self.min_lr_ratio)


def _decay(progress: float, shape: DecayShape, last: float) -> float:
    """From 1 at ``progress=0`` to ``last`` at ``progress=1``."""
    if shape == "cosine":
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif shape == "sqrt":
        remaining = 1.0 - math.sqrt(progress)
    else:
        remaining = 1.0 - progress
    return last + (1.0 - last) * remaining


def _check_steps(name: str, argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValueError(
            f"{name}: {argument}={value!r} must be a positive whole number of steps"
        )


def _check_ratio(name: str, argument: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InvalidValueError(f"{name}: {argument}={value} must be between 0 and 1")


def _number(rate: float | Tensor) -> float:
    return rate.item() if isinstance(rate, Tensor) else rate
