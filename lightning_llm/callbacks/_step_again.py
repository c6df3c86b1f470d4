"""Calling an evaluation step a second time without leaving a trace in the module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric


class EvaluationStep(NamedTuple):
    """One call of ``validation_step`` or ``test_step`` and what came of it."""

    name: str
    outputs: Any
    batch: Any
    batch_idx: int
    dataloader_idx: int
    logged: dict[str, Any] = {}  # noqa: RUF012  # by name, where a callback asks for it


def can_step_again(pl_module: LightningModule, step: str) -> bool:
    """Whether ``step`` takes a batch, rather than Lightning's ``dataloader_iter``."""
    return not is_param_in_hook_signature(
        getattr(pl_module, step), "dataloader_iter", explicit=True
    )


def step_again(
    trainer: Trainer,
    pl_module: LightningModule,
    step: EvaluationStep,
    is_one_of_many: bool,
) -> EvaluationStep:
    """The step with what it returns and logs for ``step.batch``; its former outputs do not count.

    It runs through the strategy, as Lightning's own call does, so all ranks have to make it. What
    the step logs is dropped; torchmetrics of the module and random number generators are put back.
    What else a step may change (a list it appends to) stays changed.
    """
    arguments: list[Any] = [step.batch]
    if is_param_in_hook_signature(getattr(pl_module, step.name), "batch_idx", min_args=2):
        arguments.append(step.batch_idx)
    if is_one_of_many:
        arguments.append(step.dataloader_idx)
    with isolate_rng(), _silenced(pl_module) as logged, _metrics_kept(pl_module):
        outputs = getattr(trainer.strategy, step.name)(*arguments)
    return step._replace(outputs=outputs, logged=logged)


@contextmanager
def _silenced(pl_module: LightningModule) -> Iterator[dict[str, Any]]:
    """Keep what the module logs from Lightning, and give it; ``log_dict`` goes through ``log``."""
    logged: dict[str, Any] = {}
    own = pl_module.__dict__.get("log")

    def note(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        logged[name] = value.detach() if isinstance(value, Tensor) else value

    pl_module.log = note  # type: ignore[method-assign]
    try:
        yield logged
    finally:
        del pl_module.log  # the method of the class shows again
        if own is not None:
            pl_module.log = own  # type: ignore[method-assign]


@contextmanager
def _metrics_kept(pl_module: LightningModule) -> Iterator[None]:
    kept = []
    for metric in pl_module.modules():
        if isinstance(metric, Metric):
            states = {name: _copied(value) for name, value in metric.metric_state.items()}
            others = {name: metric.__dict__[name] for name in ("_update_count", "_computed")}
            kept.append((metric, states | others))
    try:
        yield
    finally:
        for metric, values in kept:
            for name, value in values.items():
                setattr(metric, name, value)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else list(value)
