"""What a Hugging Face architecture can express, as data: the row of the families table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lightning_llm.errors import InvalidValueError, LightningLLMError
from lightning_llm.interop.hf.layout import TensorMap
from lightning_llm.models import TransformerConfig

# Fields of ours that act in training alone: no architecture has to express them.
TRAINING_FIELDS = frozenset({"dropout", "initializer", "router_aux_loss_weight"})

# Fields of theirs that change no logit of the causal model, in any family.
NEUTRAL_FIELDS = frozenset(
    {
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "use_cache",
    }
)

# Ends every refusal of something of theirs.
WAY_OUT = "HFCausalLM trains any architecture of transformers"


class ExportError(LightningLLMError, ValueError):
    """A configuration that no supported Hugging Face architecture can express."""


@dataclass(frozen=True)
class Family:
    """One architecture of ``transformers``.

    A field of ours that is named in none of ``requires``, ``fields``, ``converts`` and ``unused``
    can be expressed at its default only.

    Args:
        model_type: ``config.json``'s ``model_type``.
        architecture: Class name that ``AutoModelForCausalLM`` builds.
        requires: Our field -> the values of it that the architecture can express.
        fields: Our field -> their field with the same value.
        converts: Our fields that ``to_hf`` and ``from_hf`` handle.
        unused: Our fields without effect once ``requires`` holds.
        to_hf: The rest of their configuration from ours.
        from_hf: The rest of our configuration from theirs; raises ``ValueError`` for a value of
            theirs that we cannot express.
        tensors: The weight table of a configuration.
        limits: Problems that depend on several fields, worded for the user.
        neutral: Their fields without effect on logits, beyond :data:`NEUTRAL_FIELDS`.
        converted: Their fields that ``from_hf`` reads.
        blind_to: Fields that other families read and this one does not, declared or not.
        stored_as: Key in files -> key in memory, where transformers renames what it loads.
        base_prefix: What bare base-model checkpoints leave out in front of their keys.
    """

    model_type: str
    architecture: str
    requires: Mapping[str, tuple[Any, ...]]
    fields: Mapping[str, str]
    converts: frozenset[str]
    unused: frozenset[str]
    to_hf: Callable[[TransformerConfig], dict[str, Any]]
    from_hf: Callable[[dict[str, Any]], dict[str, Any]]
    tensors: Callable[[TransformerConfig], Iterator[TensorMap]]
    limits: Callable[[TransformerConfig], list[str]] = field(default=lambda config: [])
    neutral: frozenset[str] = frozenset()
    converted: frozenset[str] = frozenset()
    blind_to: frozenset[str] = frozenset()
    stored_as: Mapping[str, str] = field(default_factory=dict)
    base_prefix: str = "model."

    def problems(self, config: TransformerConfig) -> list[str]:
        """Every reason why this architecture cannot express ``config``; empty if it can."""
        found = []
        for name, allowed in self.requires.items():
            value = getattr(config, name)
            if value not in allowed:
                wanted = " or ".join(repr(option) for option in allowed)
                found.append(f"{name}={value!r} ({self.model_type} has {wanted})")
        named = {*self.requires, *self.fields, *self.converts, *self.unused, *TRAINING_FIELDS}
        for option in fields(config):
            value = getattr(config, option.name)
            if option.name not in named and value != option.default:
                found.append(f"{option.name}={value!r} ({self.model_type} has nothing like it)")
        return found + self.limits(config)


def expect(hf: Mapping[str, Any], name: str, allowed: Mapping[Any, Any]) -> Any:
    """Translate one of their values, or say which values there are.

    Args:
        hf: Their configuration.
        name: Field of theirs.
        allowed: Their value -> ours.

    Raises:
        ValueError: The value has no counterpart.
    """
    value = hf.get(name)
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise InvalidValueError(
            f"config.json: {name}={value!r} of model_type={hf.get('model_type')!r} has no "
            f"counterpart here; supported: {options}. {WAY_OUT}"
        )
    return allowed[value]
