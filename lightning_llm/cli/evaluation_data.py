"""Files of the command line that a checkpoint is evaluated on, under its own tokenizer."""

from __future__ import annotations

from dataclasses import asdict
from pkgutil import resolve_name
from typing import Any

from lightning_llm.cli.resume import checkpoint_to_resume, look_into, say
from lightning_llm.cli.run_folder import folder_of_recipe
from lightning_llm.data import TextDataModule
from lightning_llm.data.example_datamodule import ExampleDataModule
from lightning_llm.data.tokenizer import TokenizerSpec
from lightning_llm.language import CHECKPOINT_KEY
from lightning_llm.plugins.io.sealed_file import local_path

_PARTS = {"validate": ("val",), "test": ("test",), "predict": ("test", "val")}
_SIDES = ("files", "source", "target")


def take_checkpoint_tokenizer(command: str, config: Any) -> None:
    """Have a recipe's data use the tokenizer of ``--ckpt_path``, where files to evaluate are named.

    Nothing of the training data is read then. A validation part that is a fraction of the training
    data stays what it is, under the tokenizer that was trained on the rest.

    Args:
        command: ``validate``, ``test`` or ``predict``.
        config: The parsed recipe; it is changed.
    """
    from jsonargparse import Namespace

    given, data = config["ckpt_path"], config.get("data")
    arguments = data.get("init_args") if data is not None else None
    if given in (None, "best", "hpc") or not arguments or not _is_prepared(data["class_path"]):
        return
    named = [part for part in _PARTS[command] if _files(arguments, part)]
    if not named:
        return
    if given == "last":
        folder = folder_of_recipe(config["trainer"])
        given = config["ckpt_path"] = checkpoint_to_resume("never", given, folder, evaluates=True)
    path = local_path(given)
    if not path.exists():  # which the command says
        return
    if not (look_into(path).contents.get(CHECKPOINT_KEY) or {}).get("tokenizer"):
        return
    arguments["tokenizer"] = Namespace(**asdict(TokenizerSpec(pretrained=str(path.absolute()))))
    for part in ("train", "val", "test"):
        for side in _SIDES:
            if part not in named and f"{part}_{side}" in arguments:
                arguments[f"{part}_{side}"] = None
        if part != "train" and f"{part}_split" in arguments:
            arguments[f"{part}_split"] = None
    if "dataset" in arguments:
        arguments["dataset"] = None
    arguments["val_fraction"] = 0.0
    say(f"tokenizer: that of {given}")


def _is_prepared(class_path: str) -> bool:
    kind = resolve_name(class_path)
    trains = (TextDataModule, ExampleDataModule)
    return isinstance(kind, type) and issubclass(kind, trains)


def _files(arguments: Any, part: str) -> bool:
    return any(arguments.get(f"{part}_{side}") is not None for side in _SIDES)
