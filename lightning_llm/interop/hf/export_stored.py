"""Weights on a disk in the Hugging Face layout, without holding the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_llm.interop.hf.comparison import as_exported, check_logits, coarsest, sample_ids
from lightning_llm.interop.hf.export import write_pretrained
from lightning_llm.interop.hf.families import FAMILIES
from lightning_llm.interop.hf.load import SafetensorsFolder
from lightning_llm.interop.hf.tokenizer import unpack_tokenizer
from lightning_llm.interop.hf.weights import iterate_from_hf, to_hf_config
from lightning_llm.models import Transformer, TransformerConfig


def export_stored(
    saved: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    directory: Path,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write weights that are read on demand as a folder that ``transformers`` loads.

    In memory are the weights of one file at a time. What was written is read again, weight by
    weight, and compared bit by bit; of as many leading layers as fit into the size of one file, the
    logits are compared with those of ``transformers``, too.

    Args:
        saved: What a checkpoint of :class:`~lightning_llm.CausalLM` holds besides weights:
            ``config``, ``tokenizer`` and ``generation_config``.
        weights: By their names in :class:`~lightning_llm.models.Transformer`.
        shapes: The same on the meta device.
        directory: Folder to write; an earlier export is replaced.
        max_shard_bytes: Above it, weights are split into several files.

    Raises:
        ExportError: No Hugging Face architecture expresses the configuration; names the fields.
        RuntimeError: The result reads back as other weights, or computes other logits.
    """
    packed = saved["tokenizer"]
    config = TransformerConfig(**saved["config"])
    write_pretrained(
        config,
        weights,
        shapes,
        directory,
        tokenizer=None if packed is None else unpack_tokenizer(packed),
        generation_config=saved.get("generation_config"),
        check=partial(_check, config, weights, shapes, max_shard_bytes),
        max_shard_bytes=max_shard_bytes,
    )


def _check(
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    max_bytes: int,
    folder: Path,
) -> None:
    _check_weights(weights, folder)
    layers = _layers_below(config, shapes, max_bytes)
    if layers:
        _check_leading_layers(replace(config, n_layers=layers), weights, folder)


def _layers_below(config: TransformerConfig, shapes: Mapping[str, Tensor], limit: int) -> int:
    """How many leading layers fit below a limit with what is in no layer."""
    sizes = [0] * config.n_layers
    rest = limit
    for name, tensor in shapes.items():
        kind, _, inner = name.partition(".")
        if kind == "blocks":
            sizes[int(inner.partition(".")[0])] += tensor.nbytes
        else:
            rest -= tensor.nbytes
    return sum(total <= rest for total in accumulate(sizes))


def _check_leading_layers(
    config: TransformerConfig, weights: Mapping[str, Tensor], folder: Path
) -> None:
    """Compare logits of a model of the first layers: the other ones are laid out like them."""
    ids = sample_ids(config.vocab_size, config.max_seq_len)
    with torch.device("meta"):
        ours = Transformer(config)
    names = set(ours.state_dict())
    taken = {name: weights[name] for name in names}
    ours.load_state_dict(taken, assign=True)
    dtype = coarsest(*(tensor.dtype for tensor in taken.values()))
    with as_exported(ours):
        wanted = ours(ids)
    del ours, taken  # one model at a time
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES[written["model_type"]]
    shortened = to_hf_config(config, family=family)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        short = Path(temporary)
        for file in folder.glob("*.safetensors*"):
            (short / file.name).symlink_to(file)
        content = json.dumps({**shortened, "dtype": written["dtype"]})
        (short / "config.json").write_text(content, encoding="utf-8")
        check_logits(
            wanted,
            partial(_load_short, short),
            ids,
            dtype=dtype,
            fault=f"This is a fault in the weight table of {family.model_type}: please report the "
            "TransformerConfig",
        )


def _load_short(folder: Path) -> Any:
    """A model of fewer layers than the files hold, of which transformers would tell at length."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    finally:
        logging.set_verbosity(level)


def _check_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, again in iterate_from_hf(hf_config, SafetensorsFolder(folder)):
        if not torch.equal(again, weights[name]):
            raise RuntimeError(  # a fault of ours, with its traceback
                f"{name} reads back as another weight; nothing was written. This is a fault in the "
                f"weight table of {hf_config['model_type']}: please report the TransformerConfig"
            )
