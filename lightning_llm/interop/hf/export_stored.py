"""Weights on a disk in the Hugging Face layout, without holding the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_llm.interop.hf.export import write_pretrained
from lightning_llm.interop.hf.load import SafetensorsFolder
from lightning_llm.interop.hf.tokenizer import unpack_tokenizer
from lightning_llm.interop.hf.weights import iterate_from_hf
from lightning_llm.models import TransformerConfig


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
    weight, and compared bit by bit.

    Args:
        saved: What a checkpoint of :class:`~lightning_llm.CausalLM` holds besides weights:
            ``config``, ``tokenizer`` and ``generation_config``.
        weights: By their names in :class:`~lightning_llm.models.Transformer`.
        shapes: The same on the meta device.
        directory: Folder to write; an earlier export is replaced.
        max_shard_bytes: Above it, weights are split into several files.

    Raises:
        ExportError: No Hugging Face architecture expresses the configuration; names the fields.
        RuntimeError: The result reads back as other weights.
    """
    packed = saved["tokenizer"]
    write_pretrained(
        TransformerConfig(**saved["config"]),
        weights,
        shapes,
        directory,
        tokenizer=None if packed is None else unpack_tokenizer(packed),
        generation_config=saved.get("generation_config"),
        check=partial(_check_weights, weights),
        max_shard_bytes=max_shard_bytes,
    )


def _check_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, again in iterate_from_hf(hf_config, SafetensorsFolder(folder)):
        if not torch.equal(again, weights[name]):
            raise RuntimeError(  # a fault of ours, with its traceback
                f"{name} reads back as another weight; nothing was written. This is a fault in the "
                f"weight table of {hf_config['model_type']}: please report the TransformerConfig"
            )
