"""Rotary position parameters in ``transformers``' notation (``rope_parameters``) and in ours."""

from __future__ import annotations

from typing import Any

from lightning_llm.errors import InvalidValueError
from lightning_llm.interop.hf.family import WAY_OUT
from lightning_llm.models import TransformerConfig
from lightning_llm.models.rope_scaling import KEYS


def rope_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Our ``rope_theta`` and ``rope_scaling`` as ``{"rope_parameters": {...}}``."""
    scaling = config.rope_scaling or {"rope_type": "default"}
    return {"rope_parameters": {"rope_theta": config.rope_theta, **scaling}}


def rope_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Their ``rope_parameters`` as our ``positions``, ``rope_theta`` and ``rope_scaling``.

    Raises:
        ValueError: A kind of scaling we do not have.
    """
    return {"positions": "rope", **_read(hf, hf["rope_parameters"])}


def _read(hf: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    kind = parameters["rope_type"]
    if kind not in KEYS:
        raise InvalidValueError(
            f"config.json: rope_type={kind!r} of model_type={hf.get('model_type')!r} has no "
            f"counterpart here; supported: {', '.join(KEYS)}. {WAY_OUT}"
        )
    # Other keys in a file have no effect in transformers.
    scaling = {key: parameters[key] for key in KEYS[kind] if parameters.get(key) is not None}
    return {
        "rope_theta": float(parameters["rope_theta"]),
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **scaling},
    }


def partial_rope_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The same with ``rotary_fraction``, for architectures that rotate a part of each head."""
    parameters = rope_to_hf(config)["rope_parameters"]
    fraction = {"partial_rotary_factor": config.rotary_fraction}
    return {"rope_parameters": {**parameters, **fraction}}


def partial_rope_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`partial_rope_to_hf`.

    Raises:
        ValueError: The positions are scaled.
    """
    found = rope_from_hf(hf)
    if found["rope_scaling"] is not None:
        raise InvalidValueError(
            f"config.json: rope_parameters={hf['rope_parameters']} of model_type="
            f"{hf.get('model_type')!r} scale the positions, which has no counterpart here. "
            f"{WAY_OUT}"
        )
    fraction = hf["rope_parameters"].get("partial_rotary_factor", 1.0)
    return {**found, "rotary_fraction": float(fraction)}


def layered_rope_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The same for architectures whose layers with a window have parameters of their own."""
    full = local = rope_to_hf(config)["rope_parameters"]
    if config.sliding_rope_theta is not None:
        local = {"rope_theta": config.sliding_rope_theta, "rope_type": "default"}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


def layered_rope_problems(config: TransformerConfig) -> list[str]:
    """What layered parameters cannot express."""
    scaling = config.rope_scaling or {}
    if scaling.get("truncate", True):
        return []
    return [f"rope_scaling={scaling} (its truncate is not read where layers have their own)"]


def layered_rope_from_hf(hf: dict[str, Any], *, has_window: bool) -> dict[str, Any]:
    """Inverse of :func:`layered_rope_to_hf`.

    Raises:
        ValueError: A kind of scaling we do not have, or one in the layers with a window alone.
    """
    parameters = hf["rope_parameters"]
    # transformers looks for it beside the two, and nowhere else.
    truncate = {"truncate": parameters.get("truncate")}
    full = _read(hf, {**parameters["full_attention"], **truncate})
    local = _read(hf, {**parameters["sliding_attention"], **truncate})
    found = {"positions": "rope", **full}
    if not has_window or local == full:
        return found
    if local["rope_scaling"] is not None:
        raise InvalidValueError(
            f"config.json: rope_parameters={parameters} of model_type={hf.get('model_type')!r} "
            "scale the positions of layers with a sliding window, which has no counterpart here. "
            f"{WAY_OUT}"
        )
    return {**found, "sliding_rope_theta": local["rope_theta"]}
