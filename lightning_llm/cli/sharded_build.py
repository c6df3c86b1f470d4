"""Whether the model of a recipe can be built without weights, for a strategy to draw."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar

from lightning_llm.models.drawn_later import weights_drawn_later
from lightning_llm.strategies import FSDP2Strategy

# Their `setup` looks at the trainer, not at weights.
_KNOWN = (EarlyStopping, ModelCheckpoint, ProgressBar)


def sharded_build(trainer: Any) -> AbstractContextManager[None]:
    """Return the context in which the model of a recipe is built.

    Under `FSDP2Strategy` no process holds the whole model, not even while it is built, unless a
    callback could look at the weights before they are drawn.

    Args:
        trainer: The recipe's ``trainer``, parsed but not built.
    """
    strategy = trainer.get("strategy")
    named = strategy == "fsdp2" or _is(strategy, FSDP2Strategy)
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    if named and all(map(_leaves_weights_alone, callbacks)):
        return weights_drawn_later()
    return nullcontext()


def _leaves_weights_alone(callback: Any) -> bool:
    found = _class_of(callback)
    return (
        found.setup is Callback.setup
        or found.__module__.startswith("lightning_llm.callbacks.")
        or issubclass(found, _KNOWN)
    )


def _is(given: Any, wanted: type) -> bool:
    found = _class_of(given)
    return isinstance(found, type) and issubclass(found, wanted)


def _class_of(given: Any) -> Any:
    """The class of an object, or that which a parsed entry of a recipe names."""
    path = given.get("class_path") if hasattr(given, "get") else None
    if path is None:
        return type(given)
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
