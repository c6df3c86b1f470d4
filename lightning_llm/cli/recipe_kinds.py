"""Which objects of the allowed packages a recipe may name: classes of a known kind, no functions.

A recipe is somebody's file. jsonargparse calls whatever a ``class_path`` resolves to, and torch,
lightning and transformers hold many functions that run a file, fetch one, or start a process. So
each object is looked at when its path is resolved, before anything is called: it must be a class
of a kind that a run is made of, a factory of this package, a dtype, or lie in a package that the
user named with ``--allow_import``.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

# Classmethods of this package that build a module or a configuration from what the recipe names.
_FACTORIES = ("from_pretrained", "from_preset", "from_scale")
_TRUSTED: set[str] = set()


class KindError(ImportError):
    """A recipe names an object that it may not name."""


def trust(packages: Sequence[str]) -> None:
    """Leave what lies in these packages to the user, who has named them; forget earlier ones."""
    _TRUSTED.clear()
    _TRUSTED.update(packages)


def check_kind(path: str, found: Any) -> None:
    """Refuse an object that a recipe may not name.

    Args:
        path: As the recipe spells it.
        found: What it resolves to.

    Raises:
        KindError: It is of no kind that a recipe may name.
    """
    if any(f"{path}.".startswith(f"{package}.") for package in _TRUSTED):
        return
    if inspect.isclass(found):
        if issubclass(found, _kinds()) or _is_plain_data(found):
            return
        what = f"the class {path}"
    elif _is_own_factory(found) or isinstance(found, torch.dtype):
        return
    elif inspect.ismodule(found):
        what = f"the module {path}"
    elif callable(found):
        what = f"the function {path}"
    else:
        what = f"{path}, which is no class"
    raise KindError(
        f"A recipe may not name {what}: it names classes of modules, data, optimizers, schedules, "
        "callbacks, loggers, strategies, plugins, profilers and metrics. If you trust it, give "
        f"--allow_import {path} on the command line"
    )


def guard_resolution() -> None:
    """Have `check_kind` look at every object that jsonargparse resolves for a recipe.

    Raises:
        RuntimeError: This version of jsonargparse resolves them elsewhere, so that nothing would
            be checked.
    """
    from jsonargparse import _actions, _typehints

    for module in (_actions, _typehints):
        resolve: Callable[..., Any] | None = getattr(module, "import_object", None)
        if resolve is None:
            raise RuntimeError(
                f"{module.__name__} has no import_object: recipes cannot be checked with this "
                "version of jsonargparse; install the version of constraints.txt"
            )
        if not getattr(resolve, "checks_kind", False):
            module.import_object = _checked(resolve)  # type: ignore[attr-defined]


def _checked(resolve: Callable[..., Any]) -> Callable[..., Any]:
    def import_object(name: str, check_path: bool = True) -> Any:
        found = resolve(name, check_path=check_path)
        if check_path:
            check_kind(name, found)
        return found

    import_object.checks_kind = True  # type: ignore[attr-defined]
    return import_object


@cache
def _kinds() -> tuple[type, ...]:
    """What a run is made of."""
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
    from lightning.fabric.plugins import Precision as FabricPrecision
    from lightning.fabric.strategies import Strategy as FabricStrategy
    from lightning.pytorch import Callback, LightningDataModule
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins import LayerSync, Precision
    from lightning.pytorch.profilers import Profiler
    from lightning.pytorch.strategies import Strategy
    from torch import nn, optim

    return (
        nn.Module,  # LightningModule and torchmetrics' Metric are some
        LightningDataModule,
        optim.Optimizer,
        optim.lr_scheduler.LRScheduler,
        Callback,
        Logger,
        Strategy,
        FabricStrategy,
        Precision,
        FabricPrecision,
        CheckpointIO,
        ClusterEnvironment,
        LayerSync,
        Accelerator,
        Profiler,
    )


def _is_plain_data(found: type) -> bool:
    """Whether a class only holds options: ours, or those that torch's strategies take."""
    home = f"{found.__module__}."
    if issubclass(found, enum.Enum):
        return True
    ours = home.startswith("lightning_llm.")
    return dataclasses.is_dataclass(found) and (ours or home.startswith("torch.distributed.fsdp."))


def _is_own_factory(found: Any) -> bool:
    owner = getattr(found, "__self__", None)
    if not inspect.isclass(owner) or not f"{owner.__module__}.".startswith("lightning_llm."):
        return False
    return getattr(found, "__name__", None) in _FACTORIES
