"""What a run computes in, in words."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision


def precision_name(trainer: Trainer) -> str:
    """The precision that is really in use, such as ``bf16-mixed`` or ``float8 tensorwise …``.

    ``trainer.precision`` is the name of the nearest of Lightning's own, so that of a plugin stands
    beside it: its ``description`` where it has one, and its class.
    """
    plugin = trainer.precision_plugin
    kind = type(plugin)
    words = getattr(plugin, "description", None)
    words = words if isinstance(words, str) else str(plugin.precision)
    return words if is_lightnings_own(plugin) else f"{words} ({kind.__name__})"


def is_lightnings_own(plugin: Any) -> bool:
    """Whether ``precision=...`` of the Trainer gives such a plugin, and its name says it all.

    Some that come with Lightning, such as the one of bitsandbytes, leave the name at ``32-true``.
    """
    kind = type(plugin)
    named = kind is Precision or "precision" in {**vars(kind), **vars(plugin)}
    return named and kind.__module__.startswith(("lightning.", "pytorch_lightning."))
