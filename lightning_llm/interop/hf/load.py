"""Read a Hugging Face checkpoint into our Transformer, tensor by tensor."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_llm.errors import InvalidValueError, MissingFileError
from lightning_llm.interop.hf.tokenizer import stored_tokenizer
from lightning_llm.interop.hf.weights import from_hf_config, has_own_head, iterate_from_hf
from lightning_llm.models import Transformer, TransformerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INDEX = "model.safetensors.index.json"
_SHARD = r"model-\d+-of-\d+\.safetensors"
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
    folder = find_pretrained(path_or_name)
    hf_config = _read_json(folder / "config.json")
    tensors = SafetensorsFolder(folder)
    if has_own_head(hf_config, tensors):
        warnings.warn(
            f"{folder}: config.json says tie_word_embeddings=true, but a different lm_head.weight "
            "is stored; it is loaded, with tie_embeddings=False, as transformers does",
            stacklevel=3,
        )
        hf_config["tie_word_embeddings"] = False
    stored = from_hf_config(hf_config)
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
    """The tensors of a folder, read from disk one at a time.

    Files are those that ``transformers`` reads: ``model.safetensors``, else those that
    ``model.safetensors.index.json`` names. Others may lie beside them, such as a publisher's own
    layout of the same weights.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        for file in _weight_files(folder):
            if not file.is_file():
                raise MissingFileError(
                    f"{file} is named by {_INDEX} and missing; copy the folder again, whole"
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


def _weight_files(folder: Path) -> list[Path]:
    """The files with the model's weights, by the names that ``transformers`` gives them.

    Raises:
        FileNotFoundError: There are none, or several of which none has such a name.
    """
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = sorted(set(_read_json(index)["weight_map"].values()))
        return [folder / Path(name).name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    shards = [file for file in found if re.fullmatch(_SHARD, file.name)]
    if len(found) == 1 or shards:
        return shards or found
    if found:
        raise MissingFileError(
            f"{folder} holds {', '.join(file.name for file in found[:3])} and neither "
            f"model.safetensors nor {_INDEX}, so which of them are the model's weights is unknown; "
            "rename the file of the weights to model.safetensors"
        )
    raise MissingFileError(
        f"{folder} holds no .safetensors file; pickled weights (.bin) are not read: load them with "
        "transformers and save_pretrained them"
    )


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
    has_adapters = (folder / "adapter_config.json").is_file()
    if (folder / "config.json").is_file():
        if not has_adapters:
            return
        raise InvalidValueError(
            f"{folder} holds a model and, beside it, adapters (adapter_config.json) that "
            "transformers would add to it; merge them into the weights first, or move "
            "adapter_config.json elsewhere to load the model without them"
        )
    if has_adapters:
        raise MissingFileError(
            f"{folder} holds adapters without their model: export the run's checkpoint, or "
            "save_pretrained(directory) without merge=False, which writes the merged model"
        )
    raise MissingFileError(
        f"{folder} holds no config.json, so it is no exported model; make one of a checkpoint with "
        "`lightning-llm export`"
    )


def find_pretrained(path_or_name: str | Path) -> Path:
    """Return the folder of a model, downloaded first if it is a name on the hub.

    Raises:
        FileNotFoundError: No such folder and not reachable as a hub name, or no model in it.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        check_model_folder(folder)
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                str(path_or_name),
                allow_patterns=list(_FILES),
                ignore_patterns=["consolidated*"],  # a publisher's own layout of the same weights
            )
        )
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
