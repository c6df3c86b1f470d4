"""Whose checkpoint it is: what tells the runs of one recipe from those of another.

Two runs are of one recipe when they train the same module on the same data with the same seed. How
they train (learning rate, schedule, length, devices, micro-batch size, precision, workers) and what
they are evaluated on may change from one start to the next.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as L
from typing_extensions import override

from lightning_llm.errors import InvalidValueError
from lightning_llm.language import CHECKPOINT_KEY, LanguageModule

RUN_KEY = "lightning_llm.run"  # in checkpoints

# Arguments of datamodules that leave the training rows and their order as they are.
_FREE = frozenset(
    {
        "batch_size",
        "micro_batch_size",
        "num_workers",
        "pin_memory",
        "persistent_workers",
        "prefetch_factor",
        "cache_dir",
        "local_cache",
        "strict_resume",
        "limit_val_batches",
    }
)
_FREE_PREFIXES = ("val_", "test_", "predict_", "eval_", "max_val_", "max_test_")
_SHAPES_DATA = frozenset({"val_fraction"})  # what validation takes is missing in training


class RunIdentity:
    """What a run is, as plain data.

    Args:
        model: The module.
        data: The datamodule, if there is one.
        data_arguments: Its arguments in the recipe.
        seed: ``seed_everything`` of the recipe; None where it leaves the seed to chance.
    """

    def __init__(
        self, model: Any, data: Any, data_arguments: Mapping[str, Any], seed: int | None
    ) -> None:
        self.model = model
        # What a datamodule itself keeps of its arguments, which checkpoints always hold.
        self._kept = dict(_flat(_plain(dict(getattr(data, "hparams", None) or {}))))
        self.facts: dict[str, Any] = {
            "model": _name(model),
            "data": _name(data) if data is not None else None,
            "data_arguments": dict(_flat(_plain(data_arguments))),
            "seed": seed,
        }

    def differences(self, checkpoint: Mapping[str, Any], *, data: bool = True) -> str | None:
        """Say in what a checkpoint is another run's; None where it is one of this recipe.

        A checkpoint without an entry of its own, as plain Lightning and earlier versions of this
        package write it, is judged by its model and the hyperparameters of its datamodule.

        Args:
            checkpoint: Its contents.
            data: Compare data and seed too, and not only the model.
        """
        facts = checkpoint.get(RUN_KEY) or {}
        if "model" in facts and facts["model"] != self.facts["model"]:
            return f"it holds a {facts['model']}, the recipe a {self.facts['model']}"
        other = _of_another_model(self.model, checkpoint)
        if other or not data:
            return other
        if facts.get("data", self.facts["data"]) != self.facts["data"]:
            return f"its data is a {facts['data']}, the recipe's a {self.facts['data']}"
        saved, ours = facts.get("data_arguments"), self.facts["data_arguments"]
        if saved is None:
            kept = checkpoint.get(L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY) or {}
            saved, ours = dict(_flat(_plain(dict(kept)))), self._kept
        # An argument that only one of the two versions of the package knows says nothing.
        changed = [
            f"data {name}: {saved[name]!r} there, {ours[name]!r} here"
            for name in saved.keys() & ours.keys()
            if saved[name] != ours[name]
        ]
        if None not in (seeds := (facts.get("seed"), self.facts["seed"])) and seeds[0] != seeds[1]:
            changed.append(f"seed_everything: {seeds[0]} there, {seeds[1]} here")
        return "; ".join(sorted(changed)) or None


class RunStamp(L.Callback):
    """Writes into every checkpoint of which recipe it is, and which start of it."""

    def __init__(self, identity: RunIdentity) -> None:
        self.facts = {**identity.facts, "id": secrets.token_hex(8), "started": time.time()}

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the entry."""
        checkpoint[RUN_KEY] = dict(self.facts)

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on as the run that wrote the checkpoint."""
        facts = checkpoint.get(RUN_KEY)
        if facts:
            self.facts.update({key: facts[key] for key in ("id", "started")})


def _of_another_model(model: Any, checkpoint: Mapping[str, Any]) -> str | None:
    entry = checkpoint.get(CHECKPOINT_KEY)
    if isinstance(model, LanguageModule) and entry is not None:
        try:
            model.check_checkpoint_entry(entry)
        except InvalidValueError as error:
            return str(error).partition(". Give ")[0]
        return None
    saved = {name: tuple(value.shape) for name, value in _tensors(checkpoint.get("state_dict"))}
    ours = {name: tuple(value.shape) for name, value in _tensors(model.state_dict())}
    if not ours or not saved:  # built later, in configure_model
        return None
    for name in ours.keys() & saved.keys():
        if ours[name] != saved[name]:
            return f"{name} has the shape {saved[name]} there, {ours[name]} here"
    hook = type(model).on_load_checkpoint
    rewrites = hook is not L.LightningModule.on_load_checkpoint and not isinstance(
        model, LanguageModule
    )
    differing = sorted(ours.keys() ^ saved.keys())
    if differing and model.strict_loading and not rewrites:
        where = "the checkpoint" if differing[0] in saved else "the recipe's model"
        return f"only {where} has {differing[0]}"
    return None


def _tensors(state: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of what has a shape: a tensor, or its entry in a folder of shards."""
    for name, value in (state or {}).items():
        if hasattr(value, "shape"):
            yield name, value
        elif hasattr(value, "size") and not callable(value.size):
            yield name, _Sized(value.size)


class _Sized:
    def __init__(self, shape: Any) -> None:
        self.shape = shape


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(value: Any) -> Any:
    as_dict = getattr(value, "as_dict", None)
    return json.loads(json.dumps(as_dict() if as_dict else value, default=str, sort_keys=True))


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        is_free = name in _FREE or name.startswith(_FREE_PREFIXES)
        if not prefix and is_free and name not in _SHAPES_DATA:
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
