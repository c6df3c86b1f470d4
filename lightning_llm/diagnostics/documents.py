"""Whether tokens see what they must not: other documents of their row, or what comes after them.

Tokens of a real batch are exchanged and the model runs again: what changes shows who sees whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from lightning_llm.batches import field

# Largest change that counts as rounding, of the largest value, by the type the model computes in.
# Routing to experts regroups the rows of matrix products, which rounds them differently.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}
_ROUNDING_OF_SHORT_TYPES = 2e-2


class Sight(NamedTuple):
    """What the test found; ``None`` is not known, and ``reason`` says why."""

    document_leak: bool | None
    causal: bool | None
    reason: str


def boundaries_of(batch: Any) -> Tensor | None:
    """Return the document of each position, ``(B, T) int64``; ``None`` if the batch doesn't say.

    ``document_ids``, else ``position_ids`` that start anew. Padding is -1.
    """
    ids = field(batch, "input_ids")
    documents, positions = field(batch, "document_ids"), field(batch, "position_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    if isinstance(documents, Tensor) and documents.shape == ids.shape:
        return documents
    if isinstance(positions, Tensor) and positions.shape == ids.shape:
        return (positions == 0).cumsum(1)
    return None


def holds_several_documents(batch: Any) -> bool:
    """Whether a row of the batch holds two documents that it tells apart; reads the device."""
    documents = boundaries_of(batch)
    if documents is None:
        return False
    return bool(((documents != documents[:, :1]) & (documents >= 0)).any())


def try_sight(module: L.LightningModule, batch: Any) -> Sight:
    """Exchange tokens of a batch and see which hidden states, or logits, follow.

    Args:
        module: Any module; its ``hidden_states(batch)`` is used if it has one, else what its
            parts return while its training step runs. Its weights are left as they are.
        batch: A training batch, on the module's device. It is not changed.
    """
    ids = field(batch, "input_ids")
    if not isinstance(batch, Mapping) or not isinstance(ids, Tensor) or ids.ndim != 2:
        return Sight(None, None, "the batch has no input_ids (B, T)")
    if not module.automatic_optimization and not callable(getattr(module, "hidden_states", None)):
        return Sight(None, None, "a step of this module changes its weights")
    with _undisturbed(module):
        try:
            before = _states(module, batch)
            if before is None:
                return Sight(None, None, "no part of the model returns one state per position")
            causal = _is_causal(module, batch, before)
            leak, reason = _leaks(module, batch, before)
        except Exception as error:  # a module of any kind: the report goes on without this line
            return Sight(None, None, f"the model did not run again: {error}")
    return Sight(leak, causal, reason)


def _is_causal(module: L.LightningModule, batch: Mapping[str, Any], before: Tensor) -> bool | None:
    ids = batch["input_ids"]
    half = ids.shape[1] // 2
    if half == 0:
        return None
    chosen = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) >= half
    after = _states(module, {**batch, "input_ids": _exchanged(ids, chosen)})
    if after is None or not _differ(before, after, chosen):
        return None  # the states do not depend on the tokens: nothing can be said
    return not _differ(before, after, ~chosen)


def _leaks(
    module: L.LightningModule, batch: Mapping[str, Any], before: Tensor
) -> tuple[bool | None, str]:
    documents = boundaries_of(batch)
    if documents is None:
        return None, "the batch names no documents: those that share a row see each other by choice"
    first = documents == documents[:, :1]
    later = ~first & (documents >= 0)
    if not bool(later.any()):
        return None, "no row of the batch holds two documents"
    rows = later.any(1, keepdim=True)
    after = _states(module, {**batch, "input_ids": _exchanged(batch["input_ids"], first & rows)})
    if after is None or not _differ(before, after, first & rows):
        return None, "the states do not depend on the tokens"
    if _differ(before, after, later):
        return True, "tokens of one document change the states of the next"
    return False, "documents do not see each other"


def _exchanged(ids: Tensor, chosen: Tensor) -> Tensor:
    """Other tokens at the chosen positions, out of those that the batch holds anyway."""
    known = ids.unique()
    place = torch.searchsorted(known, ids)
    other = known[(place + 1) % len(known)]
    return torch.where(chosen, other, ids)


def _differ(before: Tensor, after: Tensor, where: Tensor) -> bool:
    short = before.dtype not in _ROUNDING
    tolerance = _ROUNDING_OF_SHORT_TYPES if short else _ROUNDING[before.dtype]
    change = (after - before).abs().flatten(2).amax(2)
    scale = before.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return bool(((change > tolerance * scale) & where).any())


def _states(module: L.LightningModule, batch: Mapping[str, Any]) -> Tensor | None:
    """States (B, T, ...) near the output of the model."""
    shape = batch["input_ids"].shape
    hidden_states: Any = getattr(module, "hidden_states", None)
    if callable(hidden_states):
        states = hidden_states(batch)
        return states.detach() if isinstance(states, Tensor) else None
    seen: list[Tensor] = []

    def look(part: nn.Module, args: Any, output: Any) -> None:
        output = field(output, "logits") if not isinstance(output, Tensor) else output
        if not isinstance(output, Tensor) or output.ndim < 3 or output.shape[:2] != shape:
            return
        if output.is_floating_point():
            seen.append(output.detach())

    hooks = [part.register_forward_hook(look) for part in module.modules() if part is not module]
    try:
        module.training_step(batch, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[-1] if seen else None


@contextmanager
def _undisturbed(module: L.LightningModule) -> Iterator[None]:
    """No dropout, no gradients, no random numbers used up, nothing logged, no state changed."""
    training = [part for part in module.modules() if part.training]
    devices = [module.device] if module.device.type == "cuda" else []
    silent = {"log": _ignore, "log_dict": _ignore}
    # Without gradients compiled blocks would be compiled once more, for this test alone.
    eager = torch.compiler.set_stance("force_eager")
    with torch.random.fork_rng(devices), torch.no_grad(), eager:
        module.__dict__.update(silent)
        module.eval()
        try:
            yield
        finally:
            for name in silent:
                module.__dict__.pop(name, None)
            for part in training:
                part.training = True


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``log``, which Lightning forbids outside of its hooks."""
