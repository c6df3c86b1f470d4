"""`OptimizerSettings`: a resumed run trains with the settings given now, not the checkpoint's."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import override

from lightning_llm.errors import InvalidValueError
from lightning_llm.runtime.lightning_api import undoes_search
from lightning_llm.runtime.torch_api import (
    is_schedule_of_torch,
    parts_of_schedule,
    rates_by_formula,
)

# Which kernel computes the step; the numbers it computes are the same.
_KERNEL = ("fused", "foreach", "capturable", "differentiable")
# What a schedule writes into the groups, besides the rate.
_CONSTANTS_OF_SCHEDULES = ("max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
_OF_SCHEDULES = ("initial_lr", *_CONSTANTS_OF_SCHEDULES)
# Where a schedule stands, as opposed to what it was given.
_PROGRESS = frozenset(
    {
        *("last_epoch", "_step_count", "_last_lr", "base_lrs", "_is_initial"),
        *("_get_lr_called_within_step", "T_cur", "T_i", "best", "num_bad_epochs"),
        *("cooldown_counter", "mode_worse", "_schedulers", "optimizer", "verbose"),
    }
)
# Options that need a state of their own, which a run without them does not have.
_NEEDS_STATE = {
    "amsgrad": ("max_exp_avg_sq", "exp_avg_sq"),
    "centered": ("grad_avg", "square_avg"),
    "momentum": ("momentum_buffer", "square_avg"),  # of RMSprop; SGD makes its own
}
_STRUCTURE = "use_muon"  # decides what the state of a parameter is


class OptimizerSettings(L.Callback):
    """Trains a resumed run with the optimizer and the schedule as they are configured now.

    A checkpoint restores the options of the optimizer (learning rate, weight decay, betas, …) and
    of most schedules along with their state, so a changed value has no effect in plain Lightning.
    With this callback the module's `configure_optimizers` wins: moments and the position in the
    schedule go on, the options are the new ones, and one line names the old and new values. Where
    nothing changed, nothing is touched.

    The learning rate is that of the new base rate and the new arguments at the position reached. A
    schedule without a formula of the position goes on from the rate reached, in proportion.
    Arguments hidden in a function (`LambdaLR`) are always the new ones, and cannot be compared.

    Raises:
        ValueError: A group was handed from Muon to AdamW or back, which have other states.
    """

    def __init__(self) -> None:
        self._given: list[list[dict[str, Any]]] = []  # per optimizer and group, as configured
        self._schedules: list[dict[str, Any]] = []  # attributes of each schedule, as configured
        self._recorded: dict[str, Any] | None = None  # the same when the checkpoint was written
        self._restored = False
        self._rate_is_found = False  # by a callback, hence not configured
        self._lengths: list[int | None] = []  # of the schedules, in the checkpoint
        self._changes: list[str] | None = None  # not yet told

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier run."""
        self._recorded, self._restored, self._changes = None, False, None
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._rate_is_found = any(isinstance(one, LearningRateFinder) for one in callbacks)

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that a checkpoint is loaded, with or without settings that this class wrote.

        Lightning's finders load one too, to undo their search: that is no resumed run.
        """
        self._restored = self._restored or not undoes_search(trainer)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what was configured, before the checkpoint takes its place."""
        self._given = [
            [
                {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
                for group in optimizer.param_groups
            ]
            for optimizer in trainer.optimizers
        ]
        self._schedules = [_attributes(c.scheduler) for c in trainer.lr_scheduler_configs]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the configured settings in the place of the restored ones."""
        if not self._restored:
            if self._rate_is_found:  # since `on_fit_start`, or before, as the callbacks are ordered
                self.on_fit_start(trainer, pl_module)
            return
        changes: list[str] = []
        rates: list[dict[int, tuple[Any, Any]]] = []
        moved: set[int] = set()  # optimizers in which a schedule's own options changed
        schedulers: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs]
        for index, optimizer in enumerate(trainer.optimizers):
            own = [s for s in schedulers if _optimizer_of(s) is optimizer]
            found, changed = self._restore_groups(optimizer, index, own)
            rates.append(changed)
            if any(line.startswith(_CONSTANTS_OF_SCHEDULES) for line in found):
                moved.add(index)
            prefix = f"optimizer {index}: " if len(trainer.optimizers) > 1 else ""
            changes += [prefix + line for line in found]
        self._lengths = [_length(scheduler) for scheduler in schedulers]
        for number, scheduler in enumerate(schedulers):
            found = self._restore_schedule(scheduler, number)
            changes += found
            for index, optimizer in enumerate(trainer.optimizers):
                if _optimizer_of(scheduler) is not optimizer:
                    continue
                if found or rates[index] or index in moved:
                    _set_rates(scheduler, optimizer, rates[index])
                    rates[index] = {}
        for optimizer, changed in zip(trainer.optimizers, rates, strict=True):
            for group, (_, new) in changed.items():  # no schedule moves these
                _set(optimizer.param_groups[group], "lr", new)
        self._changes = changes

    @override
    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Tell what changed; by now the length of the run is known too."""
        self._tell(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell it at the latest now."""
        self._tell(trainer)

    def _tell(self, trainer: L.Trainer) -> None:
        if self._changes is None:
            return
        changes, self._changes = self._changes, None
        for config, old in zip(trainer.lr_scheduler_configs, self._lengths, strict=True):
            new = _length(config.scheduler)
            if old is not None and new is not None and old != new:
                changes.append(f"length of the schedule {old} -> {new} steps")
        if changes:
            rank_zero_info(
                "resumed with the optimizer settings given now, not those of the checkpoint: "
                + "; ".join(changes)
            )

    # ------------------------------------------------------------------ groups

    def _restore_groups(
        self, optimizer: Optimizer, index: int, schedulers: list[Any]
    ) -> tuple[list[str], dict[int, tuple[Any, Any]]]:
        """Set the options of all groups but the rate.

        Returns:
            The changes in words, and old and new base rate of the groups in which it changed.
        """
        changes: dict[str, dict[int, tuple[Any, Any]]] = {}
        rates: dict[int, tuple[Any, Any]] = {}
        recorded = self._recorded_of("optimizers", index)
        cycles = any(getattr(scheduler, "cycle_momentum", False) for scheduler in schedulers)
        for number, (group, given) in enumerate(
            zip(optimizer.param_groups, self._given[index], strict=False)
        ):
            before = recorded[number] if recorded and number < len(recorded) else None
            for name, new in given.items():
                if name in ("lr", *_OF_SCHEDULES) or (cycles and name in ("betas", "momentum")):
                    continue
                old = group.get(name) if before is None or name not in before else before[name]
                if name in _KERNEL:
                    if group.get(name) != new:
                        group[name] = new
                        _place_steps(optimizer, group)
                elif name not in group:  # of a later version of the optimizer
                    group[name] = new
                elif _plain(old) != _plain(new):
                    if name == _STRUCTURE:
                        raise InvalidValueError(
                            f"group {number} of the optimizer had {name}={old} when the checkpoint "
                            f"was written and has {name}={new} now, which needs another state: "
                            f"keep it as it was, or start from the weights alone"
                        )
                    changes.setdefault(name, {})[number] = (old, new)
                    _set(group, name, new)
                    _add_state(optimizer, group, name)
            old_rate = _old_rate(group, before, schedulers)
            new_rate = _number(given.get("initial_lr", given.get("lr")))
            has_changed = old_rate is not None and new_rate is not None and old_rate != new_rate
            if has_changed and not self._rate_is_found:
                rates[number] = old_rate, new_rate
                if "initial_lr" in given:
                    _set(group, "initial_lr", given["initial_lr"])
            for name in _CONSTANTS_OF_SCHEDULES:
                if name in given and _plain(group.get(name)) != _plain(given[name]):
                    changes.setdefault(name, {})[number] = (group.get(name), given[name])
                    _set(group, name, given[name])
        if rates:
            changes = {"lr": rates, **changes}
        return list(_in_words(changes)), rates

    # ------------------------------------------------------------------ schedules

    def _restore_schedule(self, scheduler: Any, index: int) -> list[str]:
        """Set the arguments of a schedule, and of the ones it consists of."""
        recorded = self._recorded_of("schedules", index)
        return list(_restore_attributes(scheduler, self._schedules[index], recorded))

    def _recorded_of(self, kind: str, index: int) -> Any:
        entries = (self._recorded or {}).get(kind) or []
        return entries[index] if index < len(entries) else None

    # ------------------------------------------------------------------ checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        """What is configured, as plain data, so that a change can be told from a schedule."""
        groups = [
            [{name: _plain(value) for name, value in group.items()} for group in groups]
            for groups in self._given
        ]
        return {"optimizers": groups, "schedules": [_plain_tree(s) for s in self._schedules]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what was configured when the checkpoint was written."""
        self._recorded = state_dict


def _optimizer_of(scheduler: Any) -> Any:
    return getattr(scheduler, "optimizer", None)


def _length(scheduler: Any) -> int | None:
    """Of a schedule of this package, which is given the length of the run by the trainer."""
    return scheduler.total_steps if _is_ours(scheduler) else None


def _is_ours(scheduler: Any) -> bool:
    return hasattr(scheduler, "set_total_steps")


def _old_rate(group: Mapping[str, Any], before: Any, schedulers: list[Any]) -> float | None:
    """The base rate when the checkpoint was written; None where it cannot be told."""
    if before is not None:
        return _number(before.get("initial_lr", before.get("lr")))
    if schedulers and "initial_lr" in group:
        return _number(group["initial_lr"])
    return None if schedulers else _number(group.get("lr"))


def _set_rates(scheduler: Any, optimizer: Any, rates: dict[int, tuple[Any, Any]]) -> None:
    """Move the current rates to the new base rates and arguments."""
    groups = optimizer.param_groups
    for part in (scheduler, *parts_of_schedule(scheduler)):
        for number, (_, new) in rates.items():
            if getattr(part, "base_lrs", None):
                part.base_lrs[number] = new
    if _is_ours(scheduler):
        scheduler.recompute()
        return
    current = None if isinstance(scheduler, ReduceLROnPlateau) else rates_by_formula(scheduler)
    if current is None:
        current = [group["lr"] for group in groups]
        for number, (old, new) in rates.items():
            current[number] = current[number] * (new / old) if old else new
    for group, rate in zip(groups, current, strict=True):
        _set(group, "lr", rate)
    for part in (scheduler, *parts_of_schedule(scheduler)):
        if hasattr(part, "_last_lr"):
            part._last_lr = [_number(rate) for rate in current]


def _attributes(scheduler: Any) -> dict[str, Any]:
    """What a schedule was given, as far as it shows, and the same of its parts."""
    own = vars(scheduler)
    names = set(own)
    if not is_schedule_of_torch(scheduler):
        names &= {
            name
            for kind in type(scheduler).__mro__[:-1]
            for name in inspect.signature(kind).parameters
        }
    found = {name: copy.deepcopy(own[name]) for name in names - _PROGRESS if _is_plain(own[name])}
    for number, function in enumerate(own.get("lr_lambdas", ())):
        if not isinstance(function, FunctionType) and hasattr(function, "__dict__"):
            found |= {f"lr_lambdas.{number}.{k}": v for k, v in vars(function).items()}
    parts = [_attributes(part) for part in parts_of_schedule(scheduler)]
    return {"class": type(scheduler).__name__, "arguments": found, "parts": parts}


def _restore_attributes(
    scheduler: Any, given: dict[str, Any], recorded: dict[str, Any] | None
) -> Iterator[str]:
    """Set the arguments that differ from those of the checkpoint, and say which."""
    name_of_class = given["class"]
    before = (recorded or {}).get("arguments", {})
    if recorded and recorded["class"] != name_of_class:
        yield f"schedule {recorded['class']} -> {name_of_class}"
        before = {}
    for name, new in sorted(given["arguments"].items()):
        holder, attribute = scheduler, name
        if name.startswith("lr_lambdas."):
            _, number, attribute = name.split(".", 2)
            holder = scheduler.lr_lambdas[int(number)]
        restored = getattr(holder, attribute, new)
        # A schedule of this package keeps its own arguments; only the record has the old ones.
        old = restored if _plain(restored) != _plain(new) else before.get(name, new)
        if _plain(old) != _plain(new):
            setattr(holder, attribute, new)
            what = "changed" if name.startswith("_") else f"{_short(old)} -> {_short(new)}"
            yield f"{name_of_class} {name.lstrip('_')} {what}"
    parts = parts_of_schedule(scheduler)
    for number, (part, own) in enumerate(zip(parts, given["parts"], strict=False)):
        entries = (recorded or {}).get("parts", [])
        yield from _restore_attributes(
            part, own, entries[number] if number < len(entries) else None
        )


def _in_words(changes: dict[str, dict[int, tuple[Any, Any]]]) -> Iterator[str]:
    """Each change once, with the groups where they differ in it."""
    for name, of_groups in changes.items():
        words = {
            group: f"{_short(old)} -> {_short(new)}" for group, (old, new) in of_groups.items()
        }
        counted = Counter(words.values())
        for text in counted:
            groups = ", ".join(str(group) for group, own in words.items() if own == text)
            yield f"{name} {text}" + (f" (groups {groups})" if len(counted) > 1 else "")


def _add_state(optimizer: Optimizer, group: Mapping[str, Any], name: str) -> None:
    """Give an option that was switched on the state it needs, as empty as at a first step."""
    if name not in _NEEDS_STATE or not group[name]:
        return
    key, like = _NEEDS_STATE[name]
    for parameter in group["params"]:
        state = optimizer.state.get(parameter, {})
        if like in state and key not in state:
            state[key] = torch.zeros_like(state[like])


def _place_steps(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    """Put the counters where the kernel wants them: beside the weights, or on the host."""
    on_device = bool(group.get("fused") or group.get("capturable"))
    for parameter in group["params"]:
        state = optimizer.state.get(parameter, {})
        step = state.get("step")
        if isinstance(step, Tensor):
            state["step"] = step.to(parameter.device if on_device else "cpu")


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    """Set an option; a tensor, as compiled optimizers want the rate, stays that tensor."""
    old, number = group.get(name), _number(value)
    if isinstance(old, Tensor) and number is not None:
        old.fill_(number)
    else:
        group[name] = value


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value.item()) if value.numel() == 1 else None
    return value if isinstance(value, (int, float)) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    """A value in a form that a checkpoint keeps and that compares by its contents."""
    if isinstance(value, Tensor):
        return _number(value)
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(item)] for key, item in sorted(value.items())]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _plain_tree(schedule: dict[str, Any]) -> dict[str, Any]:
    return {
        "class": schedule["class"],
        "arguments": {name: _plain(value) for name, value in schedule["arguments"].items()},
        "parts": [_plain_tree(part) for part in schedule["parts"]],
    }


def _short(value: Any) -> str:
    value = _plain(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
