"""Documents rearranged so that a causal model learns to fill in the middle."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from lightning_llm.data.tokenizer import TokenizerSpec, encode_texts
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIM_TOKENS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
# Prefix, middle, suffix, as published code models call them: Qwen2.5-Coder's are ours; StarCoder,
# SantaCoder, Code Llama, DeepSeek-Coder.
_KNOWN_TOKENS = (
    FIM_TOKENS,
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    ("▁<PRE>", "▁<MID>", "▁<SUF>"),
    ("<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜fim▁hole｜>"),  # noqa: RUF001
)


class Sentinels(NamedTuple):
    """Ids of the tokens that introduce the parts of a document."""

    prefix: int
    middle: int
    suffix: int


@dataclass(frozen=True)
class FillInTheMiddle:
    """Which documents are rearranged, where they are cut, and in which order their parts come.

    A document is cut at two characters drawn uniformly, before tokens are made, so that the model
    also learns to begin and end within a word. Its parts then come in one of the two orders of
    Bavarian et al., "Efficient Training of Language Models to Fill in the Middle"
    (arXiv:2207.14255, section 3), ``<p>``, ``<m>`` and ``<s>`` being the sentinels::

        PSM    <p> prefix <s> suffix <m> middle
        SPM    <p> <s> suffix <m> prefix middle

    What is drawn depends on ``seed`` and the text of the document alone. A document of more than
    one piece (about 1 MiB) stays as it is: its parts would never share a row.

    Attributes:
        rate: Share of the documents that are rearranged.
        spm_rate: Share of these in the order SPM.
        seed: Of the draws.
    """

    rate: float
    spm_rate: float = 0.5
    seed: int = 0

    def arrange(self, pieces: Iterable[str], sentinels: Sentinels) -> Iterator[str | int]:
        """Yield the text of a document with the ids of sentinels between its parts.

        Args:
            pieces: The document.
            sentinels: The ids.
        """
        rest = iter(pieces)
        head = list(itertools.islice(rest, 2))
        text = head[0] if len(head) == 1 else ""
        chosen, spm, start, stop = self._draw(text)
        if not text or not chosen:
            yield from itertools.chain(head, rest)
            return
        prefix, middle, suffix = text[:start], text[start:stop], text[stop:]
        parts: list[str | int]
        if spm:
            parts = [sentinels.prefix, sentinels.suffix, suffix, sentinels.middle, prefix, middle]
        else:
            parts = [sentinels.prefix, prefix, sentinels.suffix, suffix, sentinels.middle, middle]
        yield from (part for part in parts if part != "")

    def _draw(self, text: str) -> tuple[bool, bool, int, int]:
        """Whether to rearrange, whether as SPM, and the two cuts."""
        key = f"fill in the middle {self.seed}".encode()[:64]
        digest = hashlib.blake2b(text.encode(), digest_size=32, key=key).digest()
        first, second, *cuts = (
            int.from_bytes(digest[i : i + 8], "little") / 2**64 for i in (0, 8, 16, 24)
        )
        start, stop = sorted(int(cut * (len(text) + 1)) for cut in cuts)
        return first < self.rate, second < self.spm_rate, start, min(stop, len(text))


def with_sentinels(spec: TokenizerSpec) -> TokenizerSpec:
    """Return the specification with the sentinels among the special tokens, if it is trained."""
    if spec.pretrained is not None:
        return spec
    missing = [token for token in FIM_TOKENS if token not in spec.special_tokens]
    return replace(spec, special_tokens=(*spec.special_tokens, *missing))


def sentinels_of(tokenizer: PreTrainedTokenizerFast) -> Sentinels:
    """Return the ids of a tokenizer's sentinels.

    Raises:
        ValueError: It has none, or puts a space in front of each text.
    """
    ids = Sentinels(*map(tokenizer.get_vocab().__getitem__, _names(tokenizer)))
    (probe,) = encode_texts(tokenizer, ["x"])
    if tokenizer.convert_ids_to_tokens(probe.tolist())[0].startswith("▁"):
        raise InvalidValueError(
            "fim_rate: the tokenizer puts a space in front of each text, and so would in front of "
            "each part of a document. Use a byte-level one, such as algorithm='bpe'."
        )
    return ids


def mark_sentinels(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Make the sentinels special tokens, which some tokenizers only list: text never is one then.

    Raises:
        ValueError: The tokenizer has no sentinels.
    """
    from tokenizers import AddedToken

    names = _names(tokenizer)
    tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)  # type: ignore[arg-type]
    return tokenizer


def _names(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str]:
    vocab = tokenizer.get_vocab()
    for names in _KNOWN_TOKENS:
        if all(name in vocab for name in names):
            return names
    raise InvalidValueError(
        "fim_rate: the tokenizer has no tokens to fill in the middle, neither "
        f"{', '.join(FIM_TOKENS)} nor those of StarCoder, Code Llama or DeepSeek-Coder. Add them "
        "to it, train one, or leave fim_rate at 0."
    )


def fim_prompt(prefix: str, suffix: str, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """Return the prompt whose continuation is what stands between ``prefix`` and ``suffix``.

    Args:
        prefix: The text before the gap.
        suffix: The text after it.
        tokenizer: Names the sentinels; without one they are ``FIM_TOKENS``, those of the tokenizers
            trained here.

    Raises:
        ValueError: The text contains a sentinel's name, which would be taken for it; or the
            tokenizer has no sentinels.
    """
    names = FIM_TOKENS if tokenizer is None else _names(tokenizer)
    for name in names:
        if name in prefix + suffix:
            raise InvalidValueError(
                f"the text around the gap contains {name!r}, which marks its parts."
            )
    before, middle, after = names
    return f"{before}{prefix}{after}{suffix}{middle}"
