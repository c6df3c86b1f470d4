"""Between strings and token ids: prompts in, continuations out, strings that end them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_llm.errors import InvalidValueError

# A character is at most four bytes of UTF-8, so at most four tokens; a few more, because what a
# decoder does at the edge of its input differs from what it does inside.
_TOKENS_PER_CHARACTER = 4
_EDGE_TOKENS = 8


class BarePrompt(str):
    """A prompt that is encoded as it stands, without special tokens that the tokenizer adds.

    Conversations are, where the chat template begins them without BOS and the tokenizer would add
    it: training has none either.
    """

    __slots__ = ()


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, with the special tokens the tokenizer puts in front of a text.

    A prompt that begins with the BOS token's name, as chat templates render it, gets no second one.
    An empty prompt becomes the token that begins a text, else the one that ends the text before.

    Raises:
        ValueError: A prompt is empty and the tokenizer has no such token.
    """
    bos = tokenizer.bos_token_id
    # Where BOS is turned off, a text follows the end of another.
    is_off = getattr(tokenizer, "init_kwargs", {}).get("add_bos_token") is False
    candidates = [tokenizer.eos_token_id, bos] if is_off else [bos, tokenizer.eos_token_id]
    start = next((token for token in candidates if token is not None), None)
    encoded = []
    for number, prompt in enumerate(prompts):
        bare = {"add_special_tokens": False} if isinstance(prompt, BarePrompt) else {}
        ids = list(tokenizer(prompt, **bare)["input_ids"])
        if bos is not None and ids[:2] == [bos, bos] and _starts_once(tokenizer, prompt):
            del ids[0]
        # Some tokenizers close every text; a prompt is an open one.
        if (
            len(ids) > 1
            and ids[-1] == tokenizer.eos_token_id
            and not _ends_in_eos(tokenizer, prompt)
        ):
            ids.pop()
        if not ids:
            if start is None:
                raise InvalidValueError(
                    f"prompts[{number}] is empty and the tokenizer has no bos_token or eos_token "
                    "to start from; give it at least one character"
                )
            ids = [start]
        encoded.append(ids)
    return encoded


def _starts_once(tokenizer: Any, prompt: str) -> bool:
    name = str(tokenizer.bos_token)
    return prompt.startswith(name) and not prompt.startswith(name * 2)


def _ends_in_eos(tokenizer: Any, prompt: str) -> bool:
    return prompt.endswith(str(tokenizer.eos_token))


def decode_continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that ``new`` adds to ``prompt``, leading space and split characters included.

    Decoding ``new`` by itself would lose a leading space with tokenizers that mark the start of a
    word, and bytes of a character that the prompt began. So the whole is decoded and the prompt's
    text taken off the front.
    """
    whole, start = _decode(tokenizer, [*prompt, *new]), _decode(tokenizer, prompt)
    return whole[len(start) :] if whole.startswith(start) else _decode(tokenizer, new)


def _decode(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    return tokenizer.decode(
        ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )


class StopStrings:
    """Strings at which a continuation ends.

    They are looked for in the text, and in the text with the names of special tokens, which
    decoding otherwise leaves out: ``<|im_end|>`` or ``<|`` stops at the token.

    Args:
        tokenizer: Decodes what was generated.
        strings: Non-empty.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        longest = max(map(len, strings))
        self._window = _TOKENS_PER_CHARACTER * longest + _EDGE_TOKENS
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {index for index, token in added.items() if token.special}

    def hits(self, tokens: Tensor) -> Tensor:
        """Which sequences contain a stop string near their end.

        Args:
            tokens: (R, n) int64, generated so far.

        Returns:
            (R,) bool. Reads the tokens on the host: one wait for the device.
        """
        found = [self._is_in(tail) for tail in tokens[:, -self._window :].tolist()]
        return torch.tensor(found, device=tokens.device)

    def text(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text that ``new`` adds to ``prompt``, before the first stop string."""
        text = self.cut(decode_continuation(self._tokenizer, prompt, new))
        if self._special.isdisjoint(new):
            return text
        named = self._before_named(prompt, new)
        return text if named is None or len(text) < len(named) else named

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        return text[: self._find(text)]

    def _is_in(self, tokens: Sequence[int]) -> bool:
        if self._find(_decode(self._tokenizer, tokens)) is not None:
            return True
        return not self._special.isdisjoint(tokens) and self._find(self._named(tokens)) is not None

    def _before_named(self, prompt: Sequence[int], new: Sequence[int]) -> str | None:
        """The text before the first stop string that has a special token's name in it."""
        position = self._find(self._named(new))
        if position is None:
            return None
        count = next(n for n in range(len(new) + 1) if len(self._named(new[: n + 1])) > position)
        text = decode_continuation(self._tokenizer, prompt, new[:count])
        if new[count] in self._special:
            return text
        # The string begins within a token.
        return text + self._named(new[: count + 1])[len(self._named(new[:count])) : position]

    def _named(self, tokens: Sequence[int]) -> str:
        return _decode(self._tokenizer, tokens, skip_special_tokens=False)

    def _find(self, text: str) -> int | None:
        ends = [text.find(stop) for stop in self._strings]
        return min((end for end in ends if end >= 0), default=None)
