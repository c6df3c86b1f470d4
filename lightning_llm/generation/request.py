"""From prompts to token ids, and from new token ids to what the prompts are answered with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_llm.generation.arguments import (
    Options,
    eos_ids,
    length_limits,
    pad_id,
)
from lightning_llm.generation.text import StopStrings, decode_continuation, encode_prompts


class Request:
    """One call of `generate`, whatever computes the new tokens.

    Args:
        prompts: Strings, or token ids (B, T) int64; at least one.
        tokenizer: A Hugging Face tokenizer, or None for token ids.
        options: Of the call.
        max_seq_len: Longest sequence of the model.
        vocab_size: Number of its token ids.
        default_eos: What ends a sequence where the options do not say; by default what the
            tokenizer and its chat template say.

    Attributes:
        ids: Token ids of each prompt.
        limits: Most new tokens of each.
        eos: Token ids that end a sequence; may be empty.
        padding: The token id that fills a sequence after its end.
        stopper: Strings that end a text, or None.

    Raises:
        ValueError: A prompt is empty, too long, or of another vocabulary.
        TypeError: Strings or stop strings without a tokenizer, or prompts of another type.
    """

    def __init__(
        self,
        prompts: Sequence[str] | Tensor,
        tokenizer: Any,
        options: Options,
        *,
        max_seq_len: int,
        vocab_size: int,
        default_eos: Sequence[int] | None = None,
    ) -> None:
        self._prompts, self._tokenizer = prompts, tokenizer
        if isinstance(prompts, Tensor):
            self.ids: list[list[int]] = prompts.tolist()
        else:
            self.ids = encode_prompts(tokenizer, prompts)
        self.limits = length_limits(self.ids, options.max_new_tokens, max_seq_len, vocab_size)
        self.eos = eos_ids(options.eos_token_id, tokenizer, default_eos)
        self.padding = pad_id(options.pad_token_id, tokenizer, self.eos)
        self.stopper = StopStrings(tokenizer, options.stops) if options.stops else None

    def answer(self, new: Tensor) -> list[str] | Tensor:
        """What the call returns.

        Args:
            new: (B, N) int64 new tokens, padded after each end.

        Returns:
            Continuations for strings; prompts and continuations (B, T + N) for token ids.
        """
        if isinstance(self._prompts, Tensor):
            return torch.cat((self._prompts, new.to(self._prompts.device)), dim=1)
        rows = zip(self.ids, new.tolist(), self.limits, strict=True)
        return [self._text(prompt, row[:limit]) for prompt, row, limit in rows]

    def _text(self, prompt: list[int], row: list[int]) -> str:
        end = next((i for i, token in enumerate(row) if token in self.eos), len(row))
        if self.stopper is not None:
            return self.stopper.text(prompt, row[:end])
        return decode_continuation(self._tokenizer, prompt, row[:end])
