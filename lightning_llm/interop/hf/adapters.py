"""Adapters of the ``peft`` library: built from plain data, kept in checkpoints as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from torch import nn

from lightning_llm.errors import InvalidTypeError, InvalidValueError, MissingPackageError


def with_adapters(network: nn.Module, peft: Any) -> nn.Module:
    """Freeze a network and put trainable adapters into it.

    Args:
        network: A model of ``transformers``; changed in place.
        peft: A ``peft.PeftConfig``, or a mapping of the fields of one, with its ``peft_type``:
            ``{"peft_type": "LORA", "r": 8, "target_modules": "all-linear"}``.

    Returns:
        The ``peft.PeftModel`` around the network.

    Raises:
        ModuleNotFoundError: ``peft`` is not installed.
        ValueError: An unknown ``peft_type``, or one that does more than add adapters to layers.
    """
    try:
        from peft import PeftConfig, PeftType, get_peft_model
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise MissingPackageError(
            "HFCausalLM(peft=...) needs the peft library: pip install 'lightning-llm[peft]'"
        ) from error
    if isinstance(peft, Mapping):
        fields = dict(peft)
        kind = str(fields.pop("peft_type", "")).upper()
        if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
            known = sorted(
                str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING
            )
            raise InvalidValueError(f"peft: peft_type={kind!r} is not one of {', '.join(known)}")
        peft = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**fields)
    if not isinstance(peft, PeftConfig):
        raise InvalidTypeError(
            f"peft must be a mapping or a peft.PeftConfig, got {type(peft).__name__}"
        )
    if peft.is_prompt_learning:
        raise InvalidValueError(
            f"peft: peft_type={_plain(peft.peft_type)} learns a prompt, which the chunked loss "
            "cannot see; use an adapter of layers, such as LORA"
        )
    return get_peft_model(network, peft)  # type: ignore[arg-type]


def adapter_config(model: Any) -> dict[str, Any]:
    """The configuration of a ``peft.PeftModel``, as plain data."""
    return _plain(model.peft_config[model.active_adapter].to_dict())


def _plain(value: Any) -> Any:
    """Sets become sorted lists, enumerations their values."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
