"""The part of a ``transformers`` causal model before its logits, and how logits follow from it.

`AutoModelForCausalLM` models return logits, which for a large vocabulary do not fit into memory.
Most apply a linear head to the hidden states of their decoder, and some scale or cap the result;
the configuration tells. What was read from it is tried out on a few tokens, so a model that does
something else is refused and never trained on a wrong loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_llm.errors import InvalidValueError, LightningLLMError
from lightning_llm.interop.hf.text_config import shared_row
from lightning_llm.interop.hf.unit_scale import unit_scale
from lightning_llm.language import OutputHead
from lightning_llm.models.evaluating import evaluating

# Fields of theirs: logits are multiplied by, divided by, or kept below the value.
_MULTIPLIED_BY = ("logit_scale", "lm_head_multiplier")
_DIVIDED_BY = ("logits_scaling",)
_CAPPED_AT = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest logit; else:
_HALF_TOLERANCE = 5e-2
_PROBE_LENGTH = 6  # tokens of a document
# Of the influence that a token has within its document; else:
_REMAINDER = {torch.float32: 1e-5, torch.float64: 1e-5}
_HALF_REMAINDER = 1e-2


class LogitRule(NamedTuple):
    """``logits = softcap(scale * head(hidden))``."""

    scale: float
    softcap: float | None


def logit_rule(config: Any) -> LogitRule:
    """Read from a configuration of ``transformers`` what happens to the head's output.

    Raises:
        ValueError: A field asks for a loss that is not part of ours.
    """
    config = config.get_text_config()
    if getattr(config, "output_router_logits", False):
        raise InvalidValueError(
            f"config.output_router_logits=True of model_type={config.model_type!r} asks for the "
            "balancing loss of the router, which HFCausalLM does not add; set it to False, or "
            "train a mixture of experts with CausalLM"
        )
    scale = 1.0
    for name in _MULTIPLIED_BY:
        scale *= _positive(config, name) or 1.0
    for name in _DIVIDED_BY:
        scale /= _positive(config, name) or 1.0
    caps = [value for name in _CAPPED_AT if (value := _positive(config, name)) is not None]
    return LogitRule(scale, min(caps, default=None))


def _positive(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or value <= 0:
        raise InvalidValueError(f"config.{name}={value!r} must be a positive number")
    return float(value)


class Decoder:
    """Hidden states and output head of a causal model of ``transformers``.

    Args:
        network: From `AutoModelForCausalLM`; adapters may have been injected.

    Raises:
        ValueError: Its logits are no (scaled, capped) linear function of its hidden states, they
            depend on later tokens, or it does not run on token ids alone.
    """

    def __init__(self, network: nn.Module) -> None:
        model: Any = network
        self._network = model
        self._rule = logit_rule(model.config)
        base = _base_of(model)
        if base is None or model.get_output_embeddings() is None:
            raise InvalidValueError(
                f"{self._what()} has no decoder or no output embeddings, of which the chunked loss "
                "is made; use another architecture"
            )
        self._base_model: Any = base
        parameters = inspect.signature(base.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes = {
            name for name in ("position_ids", "use_cache") if takes_any or name in parameters
        }
        self.head()  # refuses adapters on it
        self._separates = False
        if next(network.parameters()).device.type != "meta":
            with evaluating(network), self._named_errors():
                self._check_logits()
                with unit_scale(network):
                    joined = self._check_causal()
                    self._separates = "position_ids" in self._takes and (
                        self._separates_documents(joined)
                    )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (LightningLLMError, torch.OutOfMemoryError):
            raise
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            raise InvalidValueError(
                f"{self._what()} cannot be run on token ids alone, which is how HFCausalLM trains: "
                f"{type(error).__name__}: {error}. If its configuration is right, use another "
                "architecture"
            ) from error

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """What the head is applied to, scaled.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) int64; unused where there are ``document_ids``.
            document_ids: (B, T) int64; attention stays within a document. ``transformers`` takes
                a position that does not follow on the one before for the start of a document, and
                builds its masks, sliding windows included, accordingly.

        Returns:
            (B, T, D)

        Raises:
            ValueError: The architecture cannot keep documents apart.
        """
        if document_ids is not None:
            if not self._separates:
                raise InvalidValueError(
                    f"the batch has document_ids, and {self._what()} does not keep packed "
                    "documents apart; set mask_documents=False, or pad (packing='pad')"
                )
            longest = shared_row(self._network.config)
            if longest is not None and document_ids.shape[1] > longest:
                raise InvalidValueError(
                    f"the batch has document_ids and rows of {document_ids.shape[1]} tokens, and "
                    f"{self._what()} chooses among the keys of a row, or cuts it into chunks, from "
                    f"{longest} tokens on, whatever their documents; use shorter rows, set "
                    "mask_documents=False, or pad (packing='pad')"
                )
            position_ids = positions_in_documents(document_ids)
        hidden = self._base(input_ids, position_ids)
        return hidden if self._rule.scale == 1.0 else hidden * self._rule.scale

    def _base(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        options = {"position_ids": position_ids, "use_cache": False}
        passed = {name: options[name] for name in self._takes if options[name] is not None}
        return self._base_model(input_ids=input_ids, **passed)[0]

    def head(self) -> OutputHead:
        """The output projection as it is now.

        Raises:
            ValueError: It is no plain linear layer.
        """
        layer = self._network.get_output_embeddings()
        copies = getattr(layer, "modules_to_save", None)  # PEFT's trainable copy
        if copies is not None and len(copies):
            layer = next(iter(copies.values()))
        if not isinstance(layer, nn.Linear):
            raise InvalidValueError(
                f"the output embeddings of {self._what()} are a {type(layer).__name__}; the "
                "chunked loss needs a plain linear layer. To train them beside adapters, name "
                "them in modules_to_save, not in target_modules or trainable_token_indices"
            )
        bias: Tensor | None = layer.bias
        if bias is not None and self._rule.scale != 1.0:
            bias = bias * self._rule.scale
        return OutputHead(layer.weight, bias, self._rule.softcap)

    def _what(self) -> str:
        return f"{type(self._network).__name__} (model_type={self._network.config.model_type!r})"

    def _probe_ids(self, count: int) -> Tensor:
        size = self._network.config.get_text_config().vocab_size
        device = next(self._network.parameters()).device
        return (torch.arange(count, device=device)[None] * 7 + 3) % size

    def _check_logits(self) -> None:
        ids = self._probe_ids(6)
        theirs = network_logits(self._network, ids).float()
        if not theirs.isfinite().all():  # no comparison would say so
            self._refuse_not_finite()
        head = self.head()
        hidden = self.hidden_states(ids)
        ours = None
        if hidden.shape[-1] == head.weight.shape[-1]:
            ours = nn.functional.linear(hidden, head.weight, head.bias).float()
            if head.logit_softcap is not None:
                ours = torch.tanh(ours / head.logit_softcap) * head.logit_softcap
        tolerance = _TOLERANCE.get(hidden.dtype, _HALF_TOLERANCE)
        if (
            ours is None
            or ours.shape != theirs.shape
            or (ours - theirs).abs().max() > tolerance * theirs.abs().max()
        ):
            fields = {
                name: value
                for name, value in self._network.config.get_text_config().to_dict().items()
                if value is not None and ("logit" in name or "lm_head" in name or "scal" in name)
            }
            raise InvalidValueError(
                f"the logits of {self._what()} are not its output embeddings applied to its "
                f"hidden states, so the loss would be wrong. config.json sets {fields}; known "
                f"here are {', '.join((*_MULTIPLIED_BY, *_DIVIDED_BY, *_CAPPED_AT))}"
            )

    def _refuse_not_finite(self) -> None:
        for name, weight in self._network.named_parameters():
            wrong = weight.numel() - int(torch.isfinite(weight).sum())
            if wrong:
                raise InvalidValueError(
                    f"the weights of {self._what()} are not finite: {wrong} of the "
                    f"{weight.numel()} values of {name} are NaN or infinite, so the training that "
                    "wrote them diverged; use an earlier checkpoint"
                )
        dtype = next(self._network.parameters()).dtype
        raise InvalidValueError(
            f"the logits of {self._what()} are not finite, though its weights are: activations "
            f"overflow in {dtype}; use dtype='float32' or 'bfloat16'"
        )

    def _probe(self) -> tuple[Tensor, Tensor, Tensor]:
        """Two documents of equal length, (1, 2 n) each: as they are, with another first, last id.

        The first differs in all its ids, the second in its last one.
        """
        first, second = self._probe_ids(2 * _PROBE_LENGTH).chunk(2, dim=1)
        size = self._network.config.get_text_config().vocab_size
        other_end = torch.cat((second[:, :-1], (second[:, -1:] + 1) % size), dim=1)
        return (
            torch.cat((first, second), dim=1),
            torch.cat((first.flip(1), second), dim=1),
            torch.cat((first, other_end), dim=1),
        )

    def _check_causal(self) -> float:
        """Refuse a model whose positions see later ones; return the influence of earlier ones.

        Raises:
            ValueError: The loss would be that of a model that sees its targets.
        """
        joined = torch.arange(2 * _PROBE_LENGTH, device=self._probe_ids(1).device)[None]
        plain, other_first, other_end = (self._base(ids, joined) for ids in self._probe())
        changed = (plain - other_end).abs().float()
        before, at = float(changed[:, :-1].max()), float(changed[:, -1].max())
        if not before <= _remainder(plain) * at:
            flags = {
                name: value
                for name in ("is_decoder", "is_causal", "use_bidirectional_attention")
                if (value := getattr(self._network.config, name, None)) is not None
            }
            raise InvalidValueError(
                f"{self._what()} is not causal: positions see the tokens that come after them, so "
                f"it would be trained to copy its targets. Its configuration has {flags}; where "
                "there is is_decoder, set it to true"
            )
        return float((plain - other_first)[:, _PROBE_LENGTH:].abs().max())

    def _separates_documents(self, joined: float) -> bool:
        """Whether a second packed document is what it is alone, whatever the first one holds.

        Experts group tokens, and so round differently in other company: what remains is compared
        with the influence in one document.

        Args:
            joined: The influence of the first half on the second where both are one document.
        """
        whole, other_first, _ = self._probe()
        positions = torch.arange(2 * _PROBE_LENGTH, device=whole.device)[None] % _PROBE_LENGTH
        packed, beside_other = (
            self._base(ids, positions)[:, _PROBE_LENGTH:] for ids in (whole, other_first)
        )
        alone = self._base(whole[:, _PROBE_LENGTH:], positions[:, :_PROBE_LENGTH])
        differences = [float((packed - x).abs().max()) for x in (beside_other, alone)]
        return max(differences) <= _remainder(packed) * joined


def _remainder(hidden: Tensor) -> float:
    return _REMAINDER.get(hidden.dtype, _HALF_REMAINDER)


def _base_of(model: Any) -> Any:
    """What gives the hidden states; None if nothing does.

    Some classes name another part than the one they have (Llama 4), so it is looked for by the
    names that are usual, too.
    """
    if model.base_model is not model:
        return model.base_model
    for name in ("model", "transformer", "language_model", "decoder"):
        found = getattr(model, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


def network_logits(network: nn.Module, ids: Tensor) -> Tensor:
    """The logits of a model of ``transformers``, (B, T, V), without the cache of generation."""
    model: Any = network
    parameters = inspect.signature((_base_of(model) or model).forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = {"use_cache": False} if takes_any or "use_cache" in parameters else {}
    return model(input_ids=ids, **options).logits


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Positions that start anew with each document.

    Args:
        document_ids: (B, T) int64; equal neighbours belong together.

    Returns:
        (B, T) int64
    """
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values
