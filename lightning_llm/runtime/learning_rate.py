"""The learning rate of a module under one name, whatever optimizer it was given.

Lightning's `LearningRateFinder` and `Tuner.lr_find` write what they suggest into the attribute
``lr`` (or ``learning_rate``) of a module. Here that attribute reaches the optimizer's groups, in
their proportions, and the schedule: a schedule goes by base rates of its own, and would otherwise
undo the suggestion in its next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lightning_llm.errors import InvalidValueError
from lightning_llm.runtime.torch_api import parts_of_schedule, rates_by_formula

_NAMES = ("lr", "learning_rate")


class LearningRate:
    """The rate that was set by hand or by a search, and its way into optimizers."""

    def __init__(self) -> None:
        self.given: float | None = None  # instead of the optimizer's own
        self.shown: Any = None  # what was assigned last
        self.was_restored = False  # a checkpoint was loaded, and no batch trained since
        self._due: list[tuple[Optimizer, list[float]]] = []

    def assign(self, module: L.LightningModule, value: Any) -> None:
        """Take a rate: for optimizers to come and, after a search, for the present one.

        What a module writes into the attribute in the course of training, say to log it, is no
        new rate.
        """
        self.shown = value
        trainer = module._trainer
        is_training = trainer is not None and trainer.training
        if is_training and not self.was_restored:
            return
        rate = _number(value)
        self.given = rate
        if trainer is None or rate is None:
            return
        for name in _NAMES:
            if name in module.hparams:
                module.hparams[name] = value
        if is_training:
            self._due = [(opt, self._rescale(trainer, opt, rate)) for opt in trainer.optimizers]

    def restored(self) -> None:
        """A checkpoint was loaded: of a run to resume, or, after a search, of its start."""
        self.was_restored = True
        self._due = []

    def batch_started(self) -> None:
        """From here on training is under way."""
        self.was_restored = False
        if self._due:
            self.put_in_place()

    def put_in_place(self) -> None:
        """Set the rates once more: the finder has given all groups one number."""
        for optimizer, rates in self._due:
            _set_rates(optimizer, rates)
        self._due = []

    def apply_to(self, optimizer: Optimizer, hparams: Any, initial: Any) -> None:
        """Scale the groups of a new optimizer to the rate set by hand or search, if there is one.

        Args:
            optimizer: Before a schedule is made of it.
            hparams: Of the module; a rate that was changed there counts too.
            initial: The same, as they were at first.
        """
        rate = self.given
        for name in _NAMES:
            changed = _number(hparams.get(name))
            if rate is None and changed is not None and changed != _number(initial.get(name)):
                rate = changed
        if rate is None or not _own_rate(optimizer):
            return
        factor = rate / _own_rate(optimizer)
        _set_rates(optimizer, [float(group["lr"]) * factor for group in optimizer.param_groups])
        optimizer.defaults["lr"] = rate

    def _rescale(self, trainer: L.Trainer, optimizer: Optimizer, rate: float) -> list[float]:
        """Change the base rates; return the current rates that follow."""
        groups = optimizer.param_groups
        base = [float(group.get("initial_lr", group["lr"])) for group in groups]
        own = _own_rate(optimizer) or base[0]
        if not own:
            raise InvalidValueError(
                f"lr={rate} cannot be passed to {type(optimizer).__name__}, whose own learning "
                "rate is 0: give the optimizer a rate above 0"
            )
        new = [rate * (value / own) for value in base]
        optimizer.defaults["lr"] = rate
        current = [float(group["lr"]) * (rate / own) for group in groups]
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if getattr(scheduler, "optimizer", None) is not optimizer:
                continue
            for part in (scheduler, *parts_of_schedule(scheduler)):
                if getattr(part, "base_lrs", None):
                    part.base_lrs = list(new)
            for group, value in zip(groups, new, strict=True):
                group["initial_lr"] = value
            if hasattr(scheduler, "recompute"):
                scheduler.recompute()
                current = [float(group["lr"]) for group in groups]
            else:
                current = rates_by_formula(scheduler) or current
        _set_rates(optimizer, current)
        return current


def rate_of(factory: Callable[..., Optimizer]) -> float | None:
    """Return the learning rate that an optimizer takes where it is given none."""
    try:
        optimizer = factory([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    except Exception:  # a factory of whatever kind, which may want the real parameters
        return None
    return _own_rate(optimizer)


def leave_out_finders(trainer: L.Trainer) -> None:
    """Keep Lightning's finders from a run that is resumed: they would put it back to its start.

    Raises:
        ValueError: A batch size would be looked for in the middle of a run.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in list(callbacks):
        kind = type(callback)
        if isinstance(callback, BatchSizeFinder) and _starts_with_fit(kind, BatchSizeFinder):
            raise InvalidValueError(
                "BatchSizeFinder cannot look for a batch size in a run that is resumed from "
                f"{trainer.ckpt_path}: leave the callback out, and give the data the "
                "micro_batch_size that was found before"
            )
        if isinstance(callback, LearningRateFinder) and _starts_with_fit(kind, LearningRateFinder):
            callbacks.remove(callback)
            rank_zero_info(
                "LearningRateFinder is left out, since the run is resumed: the learning rate of "
                "the checkpoint goes on"
            )


def _starts_with_fit(kind: type, finder: type[L.Callback]) -> bool:
    return kind.on_fit_start is finder.on_fit_start  # type: ignore[attr-defined]


def is_search(trainer: L.Trainer) -> bool:
    """Whether the steps are those of `LearningRateFinder`, which puts its own schedule in place."""
    return any(
        type(config.scheduler).__module__.startswith("lightning.pytorch.tuner")
        for config in trainer.lr_scheduler_configs
    )


def _own_rate(optimizer: Optimizer) -> float:
    """What the optimizer was constructed with, of which its groups may have multiples."""
    rate = _number(optimizer.defaults.get("lr"))
    if rate is None:
        rate = _number(optimizer.param_groups[0].get("lr"))
    return rate or 0.0


def _set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = float(rate)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None
