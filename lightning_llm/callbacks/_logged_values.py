"""What a step hands to ``self.log``, for callbacks that the step returns nothing to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

Values = dict[str, Tensor | float]
_LOSSES = ("{0}_loss", "{0}/loss", "{0}.loss", "{0}-loss", "loss/{0}", "loss_{0}")
_STAGES = {
    "validation_step": ("val", "valid", "validation", "eval", "dev"),
    "test_step": ("test", "eval"),
}


class _Recorder:
    """Stands before ``module.log`` and notes what passes; several callbacks may listen."""

    def __init__(self, log: Callable[..., None]) -> None:
        self.log = log
        self.listeners: list[Values] = []

    def __call__(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, Tensor):
            noted: Any = value.detach()
        else:
            noted = value if isinstance(value, (int, float)) else None
        for values in self.listeners:
            if noted is not None:
                values[name] = noted
        self.log(name, value, *args, **kwargs)


def listen(pl_module: LightningModule) -> Values:
    """Note what the module logs from here on, until `forget`; return where it is noted."""
    recorder = pl_module.__dict__.get("log")
    if not isinstance(recorder, _Recorder):
        recorder = _Recorder(pl_module.log)
        pl_module.log = recorder  # type: ignore[method-assign]  # log_dict calls it too
    values: Values = {}
    recorder.listeners.append(values)
    return values


def forget(pl_module: LightningModule, values: Values) -> None:
    """End a `listen`; the last one gives the module its own method back."""
    recorder = pl_module.__dict__.get("log")
    if not isinstance(recorder, _Recorder):
        return
    recorder.listeners = [other for other in recorder.listeners if other is not values]
    if not recorder.listeners:
        del pl_module.log  # the method of the class shows again
        if getattr(pl_module.log, "__func__", None) is not getattr(recorder.log, "__func__", None):
            pl_module.log = recorder.log  # type: ignore[method-assign]  # one of the object's own


def logged_loss(values: Mapping[str, Tensor | float], step: str) -> Tensor | float | None:
    """Return the loss that a step logged under one of its usual names, such as ``val_loss``."""
    for stage in _STAGES[step]:
        for pattern in _LOSSES:
            loss = values.get(pattern.format(stage))
            if loss is not None and (not isinstance(loss, Tensor) or loss.numel() == 1):
                return loss
    return None
