"""Which tokens each sequence has seen, so that they can be made less likely."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_llm.generation.sampling import apply_repetition_penalty


class RepetitionPenalty:
    """Applies the penalty to all tokens of the prompts and continuations so far.

    Args:
        penalty: Above 1 discourages repetition.
        prompts: Token ids of B prompts.
        vocab_size: V.
        device: Of the logits.
    """

    def __init__(
        self,
        penalty: float,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._penalty = penalty
        seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
        for row, prompt in zip(seen, prompts, strict=True):
            row[torch.tensor(prompt)] = True
        self._seen = seen.to(device)  # (B, V)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits or log-probabilities (B, V), penalised."""
        return apply_repetition_penalty(logits, self._seen, self._penalty)

    def add(self, tokens: Tensor) -> None:
        """Note one new token (B,) int64 per sequence."""
        self._seen.scatter_(1, tokens.unsqueeze(1), True)

    def reorder(self, index: Tensor) -> None:
        """Replace sequence i by sequence ``index[i]``; ``index`` is (B',) int64."""
        self._seen = self._seen[index]
