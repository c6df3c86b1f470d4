"""Read a Hugging Face checkpoint into our Transformer, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_llm.errors import InvalidValueError, MissingFileError
from lightning_llm.interop.hf.tokenizer import stored_tokenizer
from lightning_llm.interop.hf.weights import from_hf_config, iterate_from_hf
from lightning_llm.models import Transformer, TransformerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


class Pretrained(NamedTuple):
    """What a checkpoint folder holds; the configuration is ``model.config``."""

    model: Transformer
    tokenizer: PreTrainedTokenizerBase | None


def load_pretrained(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    weights: bool = True,
    **overrides: Any,
) -> Pretrained:
    """Load weights, configuration and tokenizer from a folder or from the Hugging Face hub.

    Only safetensors are read, never pickles. Each tensor goes to its place before the next is
    read, so memory holds the model once.

    Args:
        path_or_name: Folder with ``config.json`` and safetensors (sharded or not), or a hub name.
        dtype: Of the weights in memory; ``None`` keeps the stored one.
        device: Where to put them.
        weights: False for a model on the meta device; of the weights only the names are read.
        **overrides: Fields of :class:`TransformerConfig` to change, such as ``dropout``; they must
            not change the shape of a weight.

    Returns:
        The model in training mode, like any new module, and the tokenizer if there is one.

    Raises:
        FileNotFoundError: No such folder and not reachable as a hub name, or files are missing.
        ValueError: An architecture, value or weight that we have no counterpart for.
    """
    folder = _find(path_or_name)
    hf_config = _read_json(folder / "config.json")
    stored = from_hf_config(hf_config)
    tensors = SafetensorsFolder(folder)
    model = _meta_model(replace(stored, **overrides))
    if overrides:
        _check_overrides(model, _meta_model(stored), overrides)
    if not weights:
        return Pretrained(model.to(dtype), stored_tokenizer(folder))
    place: dict[str, Tensor] = {}
    for name, tensor in iterate_from_hf(hf_config, tensors):
        if not place:  # the first row of a table is the embedding: its dtype is the model's
            model.to(dtype or tensor.dtype).to_empty(device=device)
            place = model.state_dict()
        if place[name].shape != tensor.shape:
            raise InvalidValueError(
                f"{folder}: weights for {name} make {tuple(tensor.shape)}, but config.json asks "
                f"for {tuple(place[name].shape)}"
            )
        place[name].copy_(tensor)
    return Pretrained(model, stored_tokenizer(folder))


def _meta_model(config: TransformerConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def _check_overrides(model: Transformer, stored: Transformer, overrides: dict[str, Any]) -> None:
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in stored.state_dict().items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise InvalidValueError(
                f"overrides {overrides} make {name} {ours.get(name, 'disappear')} where the "
                f"checkpoint has {theirs.get(name, 'none')}; drop the override that does so"
            )


class SafetensorsFolder(Mapping[str, Tensor]):
    """The tensors of a folder, read from disk one at a time."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(_read_json(index)["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        else:
            files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise MissingFileError(
                f"{folder} holds no .safetensors file; pickled weights (.bin) are not read: load "
                "them with transformers and save_pretrained them"
            )
        self._file_of: dict[str, Path] = {}
        for file in files:
            if not file.is_file():
                raise MissingFileError(
                    f"{file} is named by {index.name} and missing; copy the folder again, whole"
                )
            with _opened(file) as handle:
                self._file_of.update(dict.fromkeys(handle.keys(), file))

    def __getitem__(self, name: str) -> Tensor:
        # Opened for each tensor: a file kept open keeps what was read from it in memory.
        with _opened(self._file_of[name]) as handle:
            return handle.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise InvalidValueError(f"{file} is not a whole safetensors file ({error})") from error


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds a model, and not the adapters of one alone.

    Raises:
        FileNotFoundError: It does not; the message says what to do.
    """
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise MissingFileError(
            f"{folder} holds adapters without their model: export the run's checkpoint, or "
            "save_pretrained(directory) without merge=False, which writes the merged model"
        )
    raise MissingFileError(
        f"{folder} holds no config.json, so it is no exported model; make one of a checkpoint with "
        "`lightning-llm export`"
    )


def _find(path_or_name: str | Path) -> Path:
    folder = Path(path_or_name)
    if folder.is_dir():
        check_model_folder(folder)
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_name), allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise MissingFileError(
            f"{path_or_name} is neither a folder nor a model of the Hugging Face hub that can be "
            f"reached from here ({error})"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path} is not JSON ({error})") from error
