"""Write a model of ``transformers``, or adapters of one, as a folder that is compared first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_llm.interop.hf.adapters import HALF, copy_to_merge, merged, round_like
from lightning_llm.interop.hf.comparison import (
    as_exported,
    check_logits,
    check_tokenizer,
    refuse_not_finite,
)
from lightning_llm.interop.hf.continuation import without_settings
from lightning_llm.interop.hf.decoder import network_logits
from lightning_llm.interop.hf.export_folder import export_folder
from lightning_llm.interop.hf.generation_settings import write_generation_config


class Sample(NamedTuple):
    """What an export has to give again."""

    ids: Tensor  # (2, T)
    logits: Tensor  # (2, T, V)
    dtype: torch.dtype  # of the arithmetic


def merge_adapters(model: Any, sample: Sample) -> tuple[Any, Sample]:
    """A copy of a network with its adapters merged, and the logits that its export has to give.

    In half precision these are the merged network's own: merging rounds the weights, and how far
    that moves the logits says nothing about the merging, which is compared before it, in float32.

    Args:
        model: A ``peft.PeftModel``.
        sample: Logits of the model.

    Raises:
        RuntimeError: The merged weights compute other logits.
        ValueError: Adapters of this kind cannot be merged.
    """
    apart = copy_to_merge(model)
    if not any(weight.dtype in HALF for weight in model.parameters()):
        return merged(apart), sample
    ids = sample.ids
    with as_exported(apart):
        wanted = network_logits(apart.get_base_model(), ids)
    network = merged(apart)
    check_logits(
        wanted,
        lambda: network,
        ids,
        dtype=torch.float32,
        fault="peft merges these adapters into other weights; export them alone, "
        "save_pretrained(directory, merge=False)",
    )
    round_like(network, model)
    with as_exported(network):
        logits = network_logits(network, ids)
    return network, Sample(ids, logits, sample.dtype)


def write_network(
    model: Any,
    directory: Path,
    *,
    tokenizer: Any,
    settings: Mapping[str, Any],
    sample: Sample,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a whole model in the Hugging Face layout.

    Args:
        model: Of ``transformers``; adapters merged.
        directory: Folder to write.
        tokenizer: Written along, or None.
        settings: Contents of ``generation_config.json``.
        sample: Logits of what was trained.
        state_dict: Whole weights, where the model's own are sharded.

    Raises:
        RuntimeError: What was written computes other logits.
        ValueError: Weights are not finite, or ``AutoTokenizer`` makes another tokenizer.
    """
    from transformers import AutoModelForCausalLM

    with export_folder(directory) as folder:
        with without_settings(model):
            model.save_pretrained(folder, **_given(state_dict))
        write_generation_config(folder, settings)
        _check(
            folder,
            tokenizer,
            lambda: AutoModelForCausalLM.from_pretrained(folder, dtype="auto"),
            sample,
            f"transformers does not read back what it wrote of model_type="
            f"{model.config.model_type!r}: please report its configuration",
        )


def write_adapters(
    model: Any,
    directory: Path,
    *,
    base: Mapping[str, Any],
    tokenizer: Any,
    sample: Sample,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write adapters alone, for ``peft``.

    Args:
        model: A ``peft.PeftModel``.
        directory: Folder to write.
        base: ``name_or_path``, ``revision`` and ``dtype`` of the model that the adapters belong to.
        tokenizer: As in :func:`write_network`.
        sample: As in :func:`write_network`.
        state_dict: As in :func:`write_network`.

    Raises:
        RuntimeError: Base and adapters compute other logits together.
        ValueError: As in :func:`write_network`.
    """
    config = model.peft_config[model.active_adapter]
    # A folder may have been given relative to where this process started.
    config.base_model_name_or_path = base["name_or_path"]
    config.revision = base["revision"]
    initial = getattr(config, "init_lora_weights", True)
    fault = f"The model at {base['name_or_path']} is not what it was, or peft reads other adapters"
    if isinstance(initial, str):
        fault = (
            f"Adapters with init_lora_weights={initial!r} start from frozen weights that peft does "
            "not draw alike again"
        )
    with export_folder(directory) as folder:
        model.save_pretrained(folder, **_given(state_dict))
        _check(
            folder,
            tokenizer,
            lambda: _with_base(folder, base["dtype"]),
            sample,
            f"{fault}; export the whole model, save_pretrained(directory, merge=True)",
        )


def _with_base(folder: Path, dtype: str) -> nn.Module:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    network = AutoModelForCausalLM.from_pretrained(
        written["base_model_name_or_path"],
        revision=written.get("revision") or "main",
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
    )
    return PeftModel.from_pretrained(network, folder)


def check_exported_tokenizer(network: Any, tokenizer: Any, folder: Path) -> None:
    """Compare the tokenizer of an export of ``network`` before there is one.

    Args:
        network: Of ``transformers``.
        tokenizer: Of the module.
        folder: An empty one.

    Raises:
        ValueError: ``AutoTokenizer`` makes another tokenizer for this architecture.
    """
    network.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check_tokenizer(tokenizer, folder)


def _given(state_dict: Mapping[str, Tensor] | None) -> dict[str, Any]:
    return {} if state_dict is None else {"state_dict": state_dict}


def _check(
    folder: Path, tokenizer: Any, load: Callable[[], nn.Module], sample: Sample, fault: str
) -> None:
    refuse_not_finite(_tensors(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        check_tokenizer(tokenizer, folder)
    check_logits(sample.logits, load, sample.ids, dtype=sample.dtype, fault=fault)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (no mapping)
                yield name, handle.get_tensor(name)
