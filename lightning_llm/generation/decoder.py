"""A model as a function from new tokens to the logits of the next one.

Shapes: B batch, T prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_llm.models import KVCache, Transformer

PADDING_DOCUMENT = -1
_FEW_ROWS, _LARGE_VOCABULARY = 8, 4096


class Decoder(Protocol):
    """What a search strategy asks of a model."""

    def start(self) -> Tensor:
        """Logits (B, V) float32 after the prompts."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) float32 after one more token (B,) int64 per sequence."""
        ...

    def reorder(self, index: Tensor) -> None:
        """Replace sequence i by sequence ``index[i]``; ``index`` is (B',) int64."""
        ...


class CachedDecoder:
    """Feeds the prompts once, then single tokens, with keys and values kept.

    Prompts of different lengths are padded on the left, so that all sequences grow at the same
    column; the padding is a document of its own, which no token of the prompt attends to.

    Args:
        model: Called through ``backbone`` and ``head_weight``.
        prompts: Token ids, none empty.
        steps: Number of tokens to make room for.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], steps: int) -> None:
        self._model = model
        device = model.head_weight.device
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._prompts = torch.tensor(padded, device=device)  # (B, T)
        self._padding: Tensor | None = None  # (B, 1)
        if min(map(len, prompts)) < longest:
            missing = [[longest - len(prompt)] for prompt in prompts]
            self._padding = torch.tensor(missing, device=device)
        # Columns, not positions: with padding there may be more of them than the model has
        # positions, so the model's own limit does not apply to the cache.
        self._cache = KVCache(replace(model.config, max_seq_len=longest + steps), len(prompts))

    def start(self) -> Tensor:
        """See :class:`Decoder`."""
        return self._logits(self._prompts)

    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        return self._logits(tokens.unsqueeze(1))

    def reorder(self, index: Tensor) -> None:
        """See :class:`Decoder`."""
        self._cache.reorder(index)
        if self._padding is not None:
            self._padding = self._padding[index]

    def _logits(self, tokens: Tensor) -> Tensor:
        position_ids = document_ids = None
        if self._padding is not None:
            start, end = self._cache.length, self._cache.length + tokens.shape[1]
            columns = torch.arange(start, end, device=tokens.device)
            position_ids = columns - self._padding  # (B, T)
            document_ids = torch.where(position_ids < 0, PADDING_DOCUMENT, 0)
            # Sequences at the model's limit have ended; they ride along with a valid position.
            position_ids = position_ids.clamp(0, self._model.config.max_seq_len - 1)
        hidden = self._model.backbone(
            tokens, position_ids=position_ids, document_ids=document_ids, cache=self._cache
        )
        return next_token_logits(self._model, hidden[:, -1])


class UncachedDecoder:
    """Computes every sequence anew for every token: slow, and needs no cache.

    Sequences are padded on the right, where causal attention never looks, so that no mask is
    needed either. Arguments as :class:`CachedDecoder`.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], steps: int) -> None:
        self._model = model
        device = model.head_weight.device
        room = min(max(map(len, prompts)) + steps, model.config.max_seq_len)
        padded = [[*prompt, *[0] * (room - len(prompt))] for prompt in prompts]
        self._tokens = torch.tensor(padded, device=device)  # (B, room)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._longest = max(map(len, prompts))

    def start(self) -> Tensor:
        """See :class:`Decoder`."""
        hidden = self._model.backbone(self._tokens[:, : self._longest])
        rows = torch.arange(len(hidden), device=hidden.device)
        return next_token_logits(self._model, hidden[rows, self._lengths - 1])

    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        room = self._tokens.shape[1]
        # A sequence that fills the model has ended: its last token is overwritten.
        self._tokens.scatter_(
            1, self._lengths.clamp(max=room - 1).unsqueeze(1), tokens.unsqueeze(1)
        )
        self._lengths = (self._lengths + 1).clamp(max=room)
        self._longest = min(self._longest + 1, room)
        return self.start()

    def reorder(self, index: Tensor) -> None:
        """See :class:`Decoder`."""
        self._tokens, self._lengths = self._tokens[index], self._lengths[index]


def next_token_logits(model: Transformer, hidden: Tensor) -> Tensor:
    """Logits (B, V) float32 of the last position's hidden states (B, D) alone."""
    logits = _project(hidden, model.head_weight).float()
    cap = model.config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _project(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T``, (B, V)."""
    batch = hidden.shape[0]
    plain = weight.device.type != "cpu" or weight.dtype != torch.float32
    unsuited = batch > _FEW_ROWS or weight.shape[0] < _LARGE_VOCABULARY
    if plain or unsuited or torch.is_autocast_enabled("cpu"):
        return F.linear(hidden, weight)
    # For few rows and a large vocabulary, MKL computes the transposed product 1.5 to 3.5 times
    # faster; a single one gains only as two, or it would become a matrix-vector product again.
    columns = hidden.t() if batch > 1 else hidden.repeat(2, 1).t()
    return torch.mm(weight, columns).t()[:batch]
