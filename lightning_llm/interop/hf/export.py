"""Write a model as a folder that ``transformers`` loads, and check that it computes the same."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_llm.errors import ExistingFileError, InvalidValueError
from lightning_llm.interop.hf.comparison import (
    as_exported,
    check_logits,
    refuse_not_finite,
    sample_ids,
    tokenizer_difference,
)
from lightning_llm.interop.hf.export_folder import export_folder
from lightning_llm.interop.hf.family import Family
from lightning_llm.interop.hf.generation_settings import (
    generation_settings,
    write_generation_config,
)
from lightning_llm.interop.hf.weights import families_of, family_of, iterate_to_hf, to_hf_config
from lightning_llm.models import Transformer, TransformerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXPORT_SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".txt", ".model"})


def save_pretrained(
    model: Transformer,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation_config: Mapping[str, Any] | None = None,
    check: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write weights, configuration, generation settings and tokenizer in the Hugging Face layout.

    Everything goes to a temporary folder beside ``directory`` that is renamed at the end, so a
    crash or a failed check leaves what was there. An earlier export is replaced. What
    ``AutoTokenizer`` makes of the folder is compared with ``tokenizer``; of several architectures
    that express the configuration, the first is written that keeps it.

    Args:
        model: What to export; weights keep their dtype.
        directory: Folder to write.
        tokenizer: Written along; its special ids go into the configuration.
        generation_config: What came with the model; its fields are kept, and what else ends a
            text is added.
        check: Load the result with ``transformers`` and compare logits on a random batch. Needs
            the memory of one more model.
        state_dict: Full weights, where the model's own are sharded or wrapped.
        max_shard_bytes: Above it, weights are split into several files.

    Raises:
        ExportError: No Hugging Face architecture expresses the configuration; names the fields.
        FileExistsError: ``directory`` holds something else than an earlier export.
        RuntimeError: ``transformers`` computes other logits than the model.
        ValueError: Weights are not finite, or ``AutoTokenizer`` makes another tokenizer.
    """
    weights = model.state_dict() if state_dict is None else state_dict
    write_pretrained(
        model.config,
        weights,
        {name: tensor.to("meta") for name, tensor in weights.items()},
        Path(directory),
        tokenizer=tokenizer,
        generation_config=generation_config,
        check=partial(_check_logits, model) if check else None,
        max_shard_bytes=max_shard_bytes,
    )


def write_pretrained(
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    directory: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    generation_config: Mapping[str, Any] | None,
    check: Callable[[Path], None] | None,
    max_shard_bytes: int,
) -> None:
    """Write the layout from weights that may be read on demand, each looked up once.

    In memory are the weights of one file at a time.

    Args:
        config: Of the model.
        weights: By their names in :class:`~lightning_llm.models.Transformer`.
        shapes: The same on the meta device.
        directory: Folder to write.
        tokenizer: As in :func:`save_pretrained`.
        generation_config: As in :func:`save_pretrained`.
        check: Called with the folder before it gets its name; raises to leave what was there.
        max_shard_bytes: As in :func:`save_pretrained`.
    """
    settings = generation_settings(generation_config, tokenizer)
    family_of(config)
    _refuse_foreign(directory.resolve())
    with export_folder(directory) as folder:
        dtype = shapes["embedding.weight"].dtype
        family = _write_description(folder, config, tokenizer, settings, dtype)
        _write_weights(folder, config, family, weights, shapes, max_shard_bytes)
        if check is not None:
            check(folder)


def _write_description(
    folder: Path,
    config: TransformerConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Mapping[str, Any],
    dtype: torch.dtype,
) -> Family:
    """Write all but the weights, as the first architecture that keeps the tokenizer as it is.

    ``AutoTokenizer`` takes the class of some architectures from the architecture, whatever
    ``tokenizer_config.json`` says (Qwen2).

    Raises:
        ValueError: ``AutoTokenizer`` makes another tokenizer of every architecture.
    """
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    ids = {name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    differences = {}
    for family in families_of(config):
        hf_config = to_hf_config(config, family=family, dtype=dtype, **ids)
        _write_json(folder / "config.json", {**hf_config, **_written_for()})
        write_generation_config(folder, settings)
        difference = None if tokenizer is None else tokenizer_difference(tokenizer, folder)
        if difference is None:
            return family
        differences[family.model_type] = difference
    raise InvalidValueError(
        f"AutoTokenizer would not give the tokenizer of training for model_type="
        f"{' or '.join(differences)}: {next(iter(differences.values()))}; nothing was written. "
        "Use the pretrained tokenizer of that architecture, or export without a tokenizer and save "
        "the tokenizer to a folder of its own"
    )


def _written_for() -> dict[str, str]:
    """The version without which transformers warns of every tokenizer beside a Mistral."""
    try:
        return {"transformers_version": version("transformers")}
    except PackageNotFoundError:
        return {}


def check_export(
    config: TransformerConfig,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Refuse now what `save_pretrained` would refuse after training.

    Raises:
        ExportError: No Hugging Face architecture expresses the configuration; names the fields.
        FileExistsError: ``directory`` holds something else than an earlier export.
        ValueError: ``AutoTokenizer`` would make another tokenizer of the export.
    """
    family_of(config)
    _refuse_foreign(Path(directory).resolve())
    if tokenizer is not None:
        with tempfile.TemporaryDirectory() as folder:
            settings = generation_settings(None, tokenizer)
            _write_description(Path(folder), config, tokenizer, settings, torch.float32)


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ExistingFileError(f"{target} is a file; choose a folder to export to")
    foreign = sorted(p.name for p in target.iterdir() if p.suffix not in _EXPORT_SUFFIXES)
    files = {p.name for p in target.iterdir()}
    if foreign or (files and "config.json" not in files):
        raise ExistingFileError(
            f"{target} holds {', '.join((foreign or sorted(files))[:3])} and is no earlier export; "
            "choose another folder, or remove it"
        )


def _write_weights(
    folder: Path,
    config: TransformerConfig,
    family: Family,
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    max_shard_bytes: int,
) -> None:
    from safetensors.torch import save_file

    lay_out = partial(iterate_to_hf, config)
    if family is not family_of(config):
        lay_out = partial(iterate_to_hf, config, family=family)
    # Shapes alone tell how many files there will be, and file names contain the number.
    sizes = {name: tensor.nbytes for name, tensor in lay_out(shapes)}
    shards = _plan_shards(sizes, max_shard_bytes)
    tensors = lay_out(weights)
    place = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        place.update(dict.fromkeys(names, file))
        shard = dict(next(tensors) for _ in names)
        refuse_not_finite(shard)
        # Experts are slices of one tensor; a file stores each by itself.
        shard = {
            name: tensor.clone() if tensor._base is not None else tensor
            for name, tensor in shard.items()
        }
        save_file(shard, folder / file, metadata={"format": "pt"})
        del shard  # before the next is laid out
        # safetensors leaves its files to their owner alone; the umask decides, as for the others.
        (folder / file).chmod((folder / "config.json").stat().st_mode & 0o777)
    if len(shards) > 1:
        total = {"total_size": sum(sizes.values())}
        _write_json(
            folder / "model.safetensors.index.json", {"metadata": total, "weight_map": place}
        )


def _plan_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Consecutive names, as many as fit below the limit, at least one."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _check_logits(model: Transformer, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = sample_ids(model.config.vocab_size, model.config.max_seq_len)
    with as_exported(model):
        wanted = model(ids.to(model.head_weight.device))
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    check_logits(
        wanted,
        lambda: AutoModelForCausalLM.from_pretrained(folder, dtype="auto"),
        ids,
        dtype=model.head_weight.dtype,
        fault=f"This is a fault in the weight table of {model_type}: please report the "
        "TransformerConfig",
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
