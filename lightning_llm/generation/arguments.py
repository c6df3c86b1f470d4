"""Check what :func:`~lightning_llm.generation.generate` is given, and resolve its defaults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.generation.ends import id_list, text_ends


@dataclass(frozen=True)
class Options:
    """The options of :func:`~lightning_llm.generation.generate`, which tells what they mean.

    Raises:
        ValueError: Lists all values out of range, and all pairs that contradict each other.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InvalidValueError("generate: " + "; ".join(problems))

    @property
    def stops(self) -> list[str]:
        """The strings that end a text; none if not given."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def _problems(self) -> Iterator[str]:
        if self.max_new_tokens < 1:
            yield f"max_new_tokens={self.max_new_tokens} must be at least 1"
        if self.temperature < 0:
            yield f"temperature={self.temperature} must be 0 (greedy) or above"
        if self.top_k is not None and self.top_k < 1:
            yield f"top_k={self.top_k} must be at least 1, or None for all tokens"
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield f"top_p={self.top_p} must be above 0 and at most 1, or None"
        if self.num_beams < 1:
            yield f"num_beams={self.num_beams} must be at least 1"
        if self.num_beams > 1 and self.temperature > 0:
            yield (
                f"num_beams={self.num_beams} searches and temperature={self.temperature} samples; "
                "set temperature=0 or num_beams=1"
            )
        if self.repetition_penalty <= 0:
            yield f"repetition_penalty={self.repetition_penalty} must be above 0; 1 is none"
        if "" in self.stops:
            yield "stop holds an empty string, which every text contains; remove it"


def length_limits(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_len: int, vocab_size: int
) -> list[int]:
    """How many tokens each prompt may get.

    Raises:
        ValueError: A prompt is empty, leaves no room for a token, or holds an id that the model
            does not have.
    """
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise InvalidValueError(f"prompts[{number}] has no token; give it at least one")
        if len(prompt) >= max_seq_len:
            raise InvalidValueError(
                f"prompts[{number}] has {len(prompt)} tokens and the model's max_seq_len is "
                f"{max_seq_len}, so there is no room for a continuation; shorten the prompt, for "
                f"example to its last {max_seq_len // 2} tokens"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            foreign = min(prompt) if min(prompt) < 0 else max(prompt)
            raise InvalidValueError(
                f"prompts[{number}] has token id {foreign} and the model's vocab_size is "
                f"{vocab_size}; use the tokenizer the model was trained with"
            )
    return [min(max_new_tokens, max_seq_len - len(prompt)) for prompt in prompts]


def eos_ids(
    given: int | Sequence[int] | None, tokenizer: Any, default: Sequence[int] | None = None
) -> list[int]:
    """The ids that end a sequence: those given, even if there are none of them; else the default.

    Without a default they are the tokenizer's.
    """
    if given is not None:
        return id_list(given)
    return text_ends(tokenizer) if default is None else list(default)


def pad_id(pad_token_id: int | None, tokenizer: Any, eos: list[int]) -> int:
    """What fills a sequence after its end."""
    if pad_token_id is None:
        pad_token_id = getattr(tokenizer, "pad_token_id", None)
    if pad_token_id is None:
        pad_token_id = eos[0] if eos else 0
    return pad_token_id


def check_prompts(prompts: Any, tokenizer: Any, stop: list[str]) -> None:
    """Refuse what is neither strings with a tokenizer nor token ids.

    Raises:
        TypeError: Says what came instead.
    """
    if isinstance(prompts, str):
        raise InvalidTypeError("prompts is one string; pass a list of strings, [prompt]")
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2 or prompts.dtype != torch.int64:
            raise InvalidTypeError(
                f"prompts is a tensor of shape {tuple(prompts.shape)} and {prompts.dtype}; token "
                "ids are (B, T) int64"
            )
    elif tokenizer is None:
        raise InvalidTypeError("prompts are strings and tokenizer is None; pass one, or token ids")
    if stop and tokenizer is None:
        raise InvalidTypeError(
            f"stop={stop} needs a tokenizer to know the text of token ids; pass one"
        )
