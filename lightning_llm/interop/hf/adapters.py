"""Adapters of the ``peft`` library: built from plain data, kept in checkpoints as plain data."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from lightning_llm.errors import InvalidTypeError, InvalidValueError, MissingPackageError

_FROM_DATA = ("corda", "lora_ga")


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
        ValueError: An unknown ``peft_type``, one that does more than add adapters to layers, or
            adapters that do not fit the network.
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
        try:
            peft = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**fields)
        except (TypeError, ValueError, ImportError) as error:
            raise InvalidValueError(f"peft: no configuration of {kind}: {error}") from error
    if not isinstance(peft, PeftConfig):
        raise InvalidTypeError(
            f"peft must be a mapping or a peft.PeftConfig, got {type(peft).__name__}"
        )
    _refuse_what_needs_more(peft)
    try:
        return get_peft_model(network, peft)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, AttributeError, ImportError) as error:
        raise InvalidValueError(
            f"peft: adapters of peft_type={_plain(peft.peft_type)} cannot be put into "
            f"{type(network).__name__}: {error}"
        ) from error


def _refuse_what_needs_more(config: Any) -> None:
    """Refuse adapters that need more than a network and its weights.

    Raises:
        ValueError: Names the option.
    """
    if config.is_prompt_learning:
        raise InvalidValueError(
            f"peft: peft_type={_plain(config.peft_type)} learns a prompt, which the chunked loss "
            "cannot see; use an adapter of layers, such as LORA"
        )
    initial = getattr(config, "init_lora_weights", None)
    if isinstance(initial, str) and initial.lower() in _FROM_DATA:
        raise InvalidValueError(
            f"peft: init_lora_weights={initial!r} computes the start of the adapters from data "
            "before they exist, which HFCausalLM does not do, so they would start as others; use "
            "'pissa', 'olora' or True"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise InvalidValueError(
            "peft: alora_invocation_tokens activates adapters by tokens that the chunked loss does "
            "not hand on, so nothing would be trained; leave it out for plain LoRA"
        )


class BaseWeights:
    """What a network is before adapters are put into it.

    Args:
        network: A model of ``transformers``.
    """

    def __init__(self, network: nn.Module) -> None:
        tensors = [*network.parameters(), *network.buffers()]
        # The tensors are kept so that no later one has the identity of one of them.
        self._known = {id(tensor): (tensor, _fingerprint(tensor)) for tensor in tensors}

    def beyond(self, model: nn.Module) -> set[str]:
        """Names in the state dict of what the base does not have: adapters, and what they changed.

        Some adapters start from frozen weights that are not the base's (PiSSA, OLoRA), drawn at
        random in part: the base and the trained weights alone do not give the model again.
        """
        return {
            name
            for name, tensor in model.state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and not self._is_of_base(tensor)
        }

    def _is_of_base(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        return known is not None and known[1] == _fingerprint(tensor)


def _fingerprint(tensor: Tensor) -> int:
    """A number that almost surely changes with any bit of the tensor."""
    if tensor.is_meta:
        return 0
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = raw.numel() // 8 * 8
    rest = int(raw[whole:].sum())
    # Read as 64-bit numbers it is one pass at the speed of the memory.
    return int(raw[:whole].view(torch.int64).sum()) * 31 + rest


def check_mergeable(model: Any) -> None:
    """Refuse now what merging would refuse after training; tries one layer of each kind.

    Raises:
        ValueError: Names the kind of adapter and what is in the way.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    tried = set()
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer()
        kind = (type(module), type(base), getattr(base, "bias", None) is None)
        if kind in tried or not hasattr(module, "merge"):
            continue
        tried.add(kind)
        with torch.no_grad():
            _merging(model, copy.deepcopy(module).merge)


HALF = (torch.bfloat16, torch.float16)


def copy_to_merge(model: nn.Module) -> Any:
    """A copy whose weights can be added to without rounding each time.

    Weights in half precision become float32, on the host, which has more room than a device.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if not any(tensor.dtype in HALF for tensor in tensors):
        return copy.deepcopy(model)
    copies: dict[int, Any] = {}
    for tensor in tensors:
        exact = tensor.detach().to("cpu", torch.float32 if tensor.dtype in HALF else tensor.dtype)
        exact = exact.clone() if exact is tensor else exact
        is_weight = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(exact, tensor.requires_grad) if is_weight else exact
    return copy.deepcopy(model, copies)


def round_like(network: nn.Module, adapted: Any) -> None:
    """Give merged weights the dtypes that the network with the adapters has them in.

    Args:
        network: Merged from a :func:`copy_to_merge`.
        adapted: The ``peft.PeftModel``.
    """
    base = adapted.get_base_model()
    marks = re.compile(r"\.(base_layer|original_module)(?=\.)")
    dtypes = {marks.sub("", name): weight.dtype for name, weight in base.named_parameters()}
    usual = base.get_input_embeddings().weight.dtype
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.data = weight.data.to(dtypes.get(name, usual))


def merged(model: Any) -> Any:
    """The network of a copy, with the adapters added to the weights they belong to.

    Weights that were tied are told apart before, since an adapter belongs to one of them, and
    tied again after if they are still equal.

    Args:
        model: Of :func:`copy_to_merge`; of no use afterwards.

    Raises:
        ValueError: Adapters of this kind cannot be merged.
    """
    config, was_tied = model.get_base_model().config, _is_tied(model.get_base_model())
    flags = [(c, getattr(c, "tie_word_embeddings", None)) for c in _with_text_config(config)]
    _separate_shared(model)
    network = _merging(model, model.merge_and_unload)
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if was_tied and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        for part, flag in flags:  # peft has cleared it
            part.tie_word_embeddings = flag
    note_own_head(network)
    return network


def _with_text_config(config: Any) -> list[Any]:
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def _is_tied(network: Any) -> bool:
    weights = [
        {id(weight) for weight in layer.parameters()}
        for layer in (network.get_output_embeddings(), network.get_input_embeddings())
        if layer is not None
    ]
    return len(weights) == 2 and bool(weights[0] & weights[1])


def _merging(model: Any, merge: Callable[[], Any]) -> Any:
    try:
        return merge()
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        kind = _plain(model.peft_config[model.active_adapter].peft_type)
        raise InvalidValueError(
            f"peft: adapters of peft_type={kind} cannot be merged into the weights here "
            f"({error}); export them alone, save_pretrained(directory, merge=False)"
        ) from error


def _separate_shared(model: nn.Module) -> None:
    """Give every place of a weight that is in several a weight of its own."""
    seen: set[int] = set()
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) in seen:
                copied = nn.Parameter(weight.detach().clone(), weight.requires_grad)
                setattr(module, name, copied)
            seen.add(id(weight))


def note_own_head(network: Any) -> None:
    """Say in the configuration that the head is not tied, where it is another weight.

    ``transformers`` ties nothing where it reads two different weights, and leaves the
    configuration as it was: a network built of it, as for a checkpoint, would be tied again.
    """
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if head is None or embedding is None or head.weight is embedding.weight:
        return
    for config in _with_text_config(network.config):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


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
