"""Write a model as a folder that ``transformers`` loads, and check that it computes the same."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_llm.errors import ExistingFileError, InvalidValueError, UnsupportedError
from lightning_llm.interop.hf.generation_settings import (
    generation_settings,
    write_generation_config,
)
from lightning_llm.interop.hf.weights import iterate_to_hf, to_hf_config
from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.models.evaluating import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Largest difference of logits, relative to the largest logit; rounding differs by kernel.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

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
    crash or a failed check leaves what was there. An earlier export is replaced.

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
    target = directory.resolve()
    settings = generation_settings(generation_config, tokenizer)
    ids = {name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    hf_config = to_hf_config(config, dtype=shapes["embedding.weight"].dtype, **ids)
    _refuse_foreign(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        folder = Path(temporary, "export")
        folder.mkdir()
        _write_json(folder / "config.json", hf_config)
        write_generation_config(folder, settings)
        _write_weights(folder, config, weights, shapes, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if check is not None:
            check(folder)
        for file in folder.iterdir():
            _sync(file)
        if target.exists():
            target.rename(Path(temporary, "replaced"))
        folder.rename(target)


def check_export(config: TransformerConfig, directory: str | Path) -> None:
    """Refuse now what `save_pretrained` would refuse after training.

    Raises:
        ExportError: No Hugging Face architecture expresses the configuration; names the fields.
        FileExistsError: ``directory`` holds something else than an earlier export.
    """
    to_hf_config(config)
    _refuse_foreign(Path(directory).resolve())


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
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    max_shard_bytes: int,
) -> None:
    from safetensors.torch import save_file

    # Shapes alone tell how many files there will be, and file names contain the number.
    sizes = {name: tensor.nbytes for name, tensor in iterate_to_hf(config, shapes)}
    shards = _plan_shards(sizes, max_shard_bytes)
    tensors = iterate_to_hf(config, weights)
    place = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        place.update(dict.fromkeys(names, file))
        shard = dict(next(tensors) for _ in names)
        _refuse_not_finite(shard)
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


def _refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
        if wrong:
            raise InvalidValueError(
                f"the weights are not finite: {wrong} of the {tensor.numel()} values of {name} are "
                "NaN or infinite, so the training diverged; nothing was written. Export an earlier "
                "checkpoint"
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

    device = model.head_weight.device
    with _quiet():
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    theirs.to(device).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(64, model.config.max_seq_len))
    ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    with evaluating(model):
        ours, expected = model(ids).float(), theirs(ids).logits.float()
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = ((ours - expected).abs().max() / largest).item()
    tolerance = _TOLERANCE[model.head_weight.dtype]
    if not error <= tolerance:
        raise UnsupportedError(
            f"the exported model computes other logits: relative difference {error:.2e}, "
            f"tolerance {tolerance:.0e}; nothing was written. This is a fault in the weight table "
            f"of {theirs.config.model_type}: please report the TransformerConfig"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar that transformers shows while it loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sync(file: Path) -> None:
    """To the disk, so that the rename never outlives the contents."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
