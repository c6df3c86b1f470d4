"""Configurations and state dicts between our Transformer and Hugging Face architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_llm.errors import InvalidValueError, MissingPackageError
from lightning_llm.interop.hf.families import FAMILIES
from lightning_llm.interop.hf.family import NEUTRAL_FIELDS, WAY_OUT, ExportError, Family
from lightning_llm.models import TransformerConfig

_HEAD = "lm_head.weight"  # under this name in the memory of every family

# Buffers that old checkpoints carry and that follow from the configuration.
_DERIVED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def family_of(config: TransformerConfig) -> Family:
    """The first architecture that expresses a configuration.

    Raises:
        ExportError: None does; names each field in the way of the closest architecture.
    """
    found = families_of(config)
    if found:
        return found[0]
    problems = {name: family.problems(config) for name, family in FAMILIES.items()}
    closest = min(problems, key=lambda name: len(problems[name]))
    raise ExportError(
        f"no Hugging Face architecture expresses this TransformerConfig. Closest is {closest}; "
        f"in the way: {'; '.join(problems[closest])}. Supported: {', '.join(problems)}"
    )


def families_of(config: TransformerConfig) -> list[Family]:
    """All architectures that express a configuration; those that add constants to it last."""
    found = [family for family in FAMILIES.values() if not family.problems(config)]
    return sorted(found, key=lambda family: not all(row.ours for row in family.tensors(config)))


def to_hf_config(
    config: TransformerConfig,
    *,
    family: Family | None = None,
    dtype: torch.dtype = torch.float32,
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """The contents of ``config.json`` for a configuration of ours.

    Args:
        config: What to express; the architecture follows from it.
        family: One of several architectures that express it; the first by default.
        dtype: Of the stored weights.
        bos_token_id: Written even if ``None``: a missing key means the architecture's own default,
            which is a plain token of somebody else's vocabulary.
        eos_token_id: As above.
        pad_token_id: As above.

    Raises:
        ExportError: No architecture expresses the configuration; names the fields in the way.
    """
    family = family or family_of(config)
    ours = asdict(config)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        **{theirs: ours[name] for name, theirs in family.fields.items()},
        **family.to_hf(config),
    }


def from_hf_config(hf_config: Mapping[str, Any]) -> TransformerConfig:
    """A configuration of ours from the contents of a ``config.json``.

    ``transformers`` fills in what the file leaves to the architecture's defaults and translates
    old spellings.

    Raises:
        ValueError: An architecture or a value that we do not have; names it.
        ModuleNotFoundError: ``transformers`` is not installed.
    """
    family = _family_named(hf_config)
    if "quantization_config" in hf_config:
        raise InvalidValueError(
            "config.json: quantization_config is set; load unquantized weights, or dequantize "
            "with transformers and save again"
        )
    theirs = _with_defaults(family, hf_config)
    ours = {name: theirs[field] for name, field in family.fields.items()}
    ours.update(family.from_hf(theirs))
    config = TransformerConfig(**ours)
    _refuse_undeclared(family, theirs, config)
    return config


def _refuse_undeclared(
    family: Family, theirs: Mapping[str, Any], config: TransformerConfig
) -> None:
    """Refuse what their models read from a file although their configuration does not declare it.

    Raises:
        ValueError: Names the field.
    """
    expected = {"is_causal": True, "head_dim": config.head_dim}
    for name, value in expected.items():
        if name not in family.blind_to and theirs.get(name, value) not in (value, None):
            raise InvalidValueError(
                f"config.json: {name}={theirs[name]!r} of model_type={family.model_type!r} has no "
                f"counterpart here; supported: {value!r}. {WAY_OUT}"
            )


def to_hf_state_dict(
    config: TransformerConfig, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our weights under the names and in the layout of a Hugging Face checkpoint.

    Args:
        config: The model's configuration.
        state_dict: Full (unsharded) tensors of :class:`~lightning_llm.models.Transformer`.

    Returns:
        Contiguous tensors; those with the same layout on both sides share memory with ours.

    Raises:
        ExportError: No architecture expresses the configuration.
        ValueError: A key is missing from ``state_dict`` or left over.
    """
    return dict(iterate_to_hf(config, state_dict))


def iterate_to_hf(
    config: TransformerConfig, state_dict: Mapping[str, Tensor], family: Family | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The same one by one, so that a part can be written before the next is laid out."""
    table = list((family or family_of(config)).tensors(config))
    _check_keys({name for row in table for name in row.ours}, set(state_dict), "state_dict")
    like = state_dict["embedding.weight"]
    for row in table:
        if not row.ours:
            yield row.theirs[0], torch.zeros(row.shape, dtype=like.dtype, device=like.device)
            continue
        tensors = row.to_hf(*(state_dict[name].detach() for name in row.ours))
        for name, tensor in zip(row.theirs, tensors, strict=True):
            yield name, tensor.contiguous()


def from_hf_state_dict(
    hf_config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our weights from those of a Hugging Face model, see :func:`iterate_from_hf`."""
    return dict(iterate_from_hf(hf_config, state_dict))


def iterate_from_hf(
    hf_config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Our weights one by one, so that the caller can place each before the next is read.

    Args:
        hf_config: Contents of ``config.json``.
        tensors: Their weights; looked up once each, so a mapping that reads on demand will do.

    Yields:
        Key of ours and its tensor.

    Raises:
        ValueError: Weights are missing or left over; names them.
    """
    family = _family_named(hf_config)
    config = from_hf_config(hf_config)
    table = [row for row in family.tensors(config) if row.ours]
    names = _stored_names(family, config, tensors)
    if has_own_head(hf_config, tensors):
        raise InvalidValueError(
            "config.json says tie_word_embeddings=true, but lm_head.weight is stored and differs "
            "from the embedding; set tie_word_embeddings to false, which is how transformers and "
            "CausalLM.from_pretrained load these weights"
        )
    _check_keys({name for row in table for name in row.theirs}, set(names), "checkpoint")
    for row in table:
        found = row.from_hf(*(tensors[names[name]] for name in row.theirs))
        yield from zip(row.ours, found, strict=True)


def has_own_head(hf_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the output head is stored and differs from an embedding it should be tied to.

    ``transformers`` then ties nothing, whatever the configuration says: the weights are those of
    the network that was saved.

    Args:
        hf_config: Contents of ``config.json``.
        tensors: Their weights; two of them are read, and only where both are stored.
    """
    family = _family_named(hf_config)
    config = from_hf_config(hf_config)
    if not config.tie_embeddings:
        return False
    names = _stored_names(family, replace(config, tie_embeddings=False), tensors)
    head, embedding = names.get(_HEAD), names.get(_embedding(family, config))
    if head is None or embedding is None:
        return False
    return not torch.equal(tensors[head], tensors[embedding])


def _embedding(family: Family, config: TransformerConfig) -> str:
    return next(iter(family.tensors(config))).theirs[0]


def _stored_names(
    family: Family, config: TransformerConfig, tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Full name -> name in the file; base-model files lack the prefix, old ones hold buffers."""
    base = not any(name.startswith(family.base_prefix) for name in tensors)
    names: dict[str, str] = {}
    head = None
    for name in tensors:
        if name.endswith(_DERIVED_SUFFIXES):
            continue
        in_memory = family.stored_as.get(name, name)
        if in_memory == _HEAD:
            head = name
            continue
        names[family.base_prefix + name if base else name] = name
    if head is not None and not config.tie_embeddings:
        names[_HEAD] = head
    elif head is not None:  # of two that are tied, one is enough
        names.setdefault(_embedding(family, config), head)
    return names


def _family_named(hf_config: Mapping[str, Any]) -> Family:
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        raise InvalidValueError(
            f"config.json: model_type={model_type!r} (architectures="
            f"{hf_config.get('architectures')}) has no weight table here; "
            f"supported: {', '.join(FAMILIES)}. {WAY_OUT}"
        )
    return FAMILIES[model_type]


def _with_defaults(family: Family, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Their full configuration; refuses a field that departs from its default unread."""
    try:
        from transformers import CONFIG_MAPPING, PreTrainedConfig
    except ImportError as error:
        raise MissingPackageError(
            "Hugging Face configurations are read with transformers: pip install transformers"
        ) from error
    config_class = CONFIG_MAPPING[family.model_type]
    theirs = config_class.from_dict(dict(hf_config)).to_dict()
    defaults = config_class().to_dict()
    for alias, name in config_class.attribute_map.items():  # which of the two is stored varies
        theirs.setdefault(alias, theirs.get(name))
    read = set(family.fields.values()) | family.converted | family.neutral | NEUTRAL_FIELDS
    read |= {config_class.attribute_map.get(name, name) for name in read}
    own = {f.name for f in fields(config_class)} - {f.name for f in fields(PreTrainedConfig)}
    unread = sorted(
        f"{name}={theirs[name]!r}" for name in own - read if theirs[name] != defaults[name]
    )
    if unread:
        raise InvalidValueError(
            f"config.json: {', '.join(unread)} of model_type={family.model_type!r} "
            f"{'has' if len(unread) == 1 else 'have'} no counterpart here. {WAY_OUT}"
        )
    return theirs


def _check_keys(expected: set[str], found: set[str], where: str) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        parts = [f"missing {_listed(missing)}"] if missing else []
        parts += [f"unexpected {_listed(extra)}"] if extra else []
        raise InvalidValueError(
            f"{where} does not fit the configuration: {'; '.join(parts)}. The two are of different "
            "models, or of one only in part"
        )


def _listed(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
