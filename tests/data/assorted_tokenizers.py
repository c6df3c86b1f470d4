"""Tokenizers of every make, trained on a few lines: by name, functions that build them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.data.trained_tokenizers import CHINESE, ENGLISH

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
# Spaces, line ends and marks in every combination, and words that share pieces with them.
_UNITS = (
    *" \n", "  ", "\n\n", " \n", "\n ", "\r\n", "\r", "\t", "\xa0", "\u3000", "\u2028", "\x1c",
    "\x0b", "\u0301", "\u0308", "\u200d", "\ufb01", "\xb4", "\xbd", "▁", "Ġ", "中", "字。", "“",
    "É", "İ", "</s>", "<s>", "[X]", "<0x41>", "the", "The", "fox", "a", "e", "1", "234", "12345",
    ".", "!!",
    "/", "'s", "it's", "-", "##a", "é", "한국", "かな", "😀", "\U0010ffff",
)  # fmt: skip


def hard_text(generator: random.Random, units: int) -> str:
    """A random text in which every second unit is a word or a single space or line end."""
    simple = ["the", "fox", " ", " ", "\n", "a", "area", "中", "."]
    return "".join(
        generator.choice(simple if generator.random() < 0.6 else _UNITS) for _ in range(units)
    )


@cache
def _corpus() -> list[str]:
    generator = random.Random(3)
    return [ENGLISH * 10, CHINESE * 10, *(hard_text(generator, 300) for _ in range(40))]


def _trained(model: Any, trainer: Any, **parts: Any) -> Tokenizer:
    backend = Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator(_corpus(), trainer)
    return backend


def wrapped(backend: Tokenizer, **roles: Any) -> PreTrainedTokenizerFast:
    roles = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"} | roles
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def bpe(**parts: Any) -> PreTrainedTokenizerFast:
    options = {"vocab_size": 500, "special_tokens": _SPECIALS, "show_progress": False}
    byte_level = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=byte_level, **options)
    model = models.BPE(unk_token="<unk>", **parts.pop("model", {}))
    return wrapped(_trained(model, trainer, **parts))


def unigram(**parts: Any) -> PreTrainedTokenizerFast:
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=_SPECIALS, unk_token="<unk>", show_progress=False
    )
    return wrapped(_trained(models.Unigram(), trainer, **parts))


def wordpiece(**parts: Any) -> PreTrainedTokenizerFast:
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=_SPECIALS, show_progress=False
    )
    return wrapped(_trained(models.WordPiece(unk_token="<unk>"), trainer, **parts))


def split(*regexes: str, **options: Any) -> Any:
    steps = [pre_tokenizers.Split(Regex(one), "isolated") for one in regexes]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])


def sentencepiece_bpe(**parts: Any) -> PreTrainedTokenizerFast:
    """As Llama's: merges over the whole text, spaces as ``▁``, bytes for unknown characters."""
    taught = bpe(
        normalizer=normalizers.Replace(" ", "▁"),
        # Only so that training ends up with pieces like those of sentencepiece.
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"),
    )
    state = json.loads(taught.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    model = models.BPE(
        vocab,
        [tuple(merge) for merge in state["model"]["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    backend = Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.add_special_tokens(list(_SPECIALS))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return wrapped(backend)


def with_tokens(tokenizer: PreTrainedTokenizerFast, *tokens: AddedToken) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def precompiled(*further: Any) -> Any:
    """Normalizer of T5 and XLM-R, with an empty table of characters."""
    empty = normalizers.Precompiled((1024).to_bytes(4, "little") + bytes(1024))
    return normalizers.Sequence([empty, *further])


_LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
_BERT = normalizers.BertNormalizer(lowercase=True)
_META = pre_tokenizers.Metaspace
_BYTES = pre_tokenizers.ByteLevel

BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": lambda: bpe(pre_tokenizer=_BYTES(False)),
    "roberta": lambda: bpe(pre_tokenizer=_BYTES(True)),
    "nfc gpt2": lambda: bpe(normalizer=normalizers.NFC(), pre_tokenizer=_BYTES(False)),
    "nfkc lower": lambda: bpe(
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        pre_tokenizer=_BYTES(False),
    ),
    "llama3": lambda: bpe(pre_tokenizer=split(LLAMA3), model={"ignore_merges": True}),
    "o200k": lambda: bpe(pre_tokenizer=split(O200K)),
    "deepseek": lambda: bpe(
        pre_tokenizer=split(r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", LLAMA3)  # noqa: RUF001
    ),
    "bloom": lambda: bpe(pre_tokenizer=split(r" ?[^(\s|[.,!?…。，、।۔،])]+")),  # noqa: RUF001
    "words and gaps": lambda: bpe(pre_tokenizer=split(r"\w+")),
    "behind": lambda: bpe(pre_tokenizer=split(r"(?<=\n)\S+|\s+|\S")),
    "anchored": lambda: bpe(pre_tokenizer=split(r"\s+$|\s|\S+")),
    "lines": lambda: bpe(pre_tokenizer=split(r"[^\n]*\n+|[^\n]+")),
    "line starts": lambda: bpe(pre_tokenizer=split(r"\n?[^\n]+|\n")),
    "ahead": lambda: bpe(pre_tokenizer=split(r"\S+\s(?=\S)|\S+|\s+")),
    "merged": lambda: bpe(pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")),
    "contiguous": lambda: bpe(pre_tokenizer=pre_tokenizers.Split(Regex(r"\s|x"), "contiguous")),
    "removed": lambda: bpe(pre_tokenizer=pre_tokenizers.Split(Regex(r"\s+"), "removed")),
    "no pre-tokens": lambda: bpe(),
    "bytes alone": lambda: bpe(pre_tokenizer=_BYTES(False, use_regex=False)),
    "digits then gpt2": lambda: bpe(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _BYTES(True)])
    ),
    "byte-level normalizer": lambda: bpe(normalizer=normalizers.ByteLevel()),
    "strip gpt2": lambda: bpe(normalizer=normalizers.Strip(), pre_tokenizer=_BYTES(False)),
    "strip words": lambda: bpe(
        normalizer=normalizers.Strip(), pre_tokenizer=pre_tokenizers.Whitespace()
    ),
    "llama": lambda: sentencepiece_bpe(pre_tokenizer=_META("▁", "first", split=False)),
    "llama always": lambda: sentencepiece_bpe(pre_tokenizer=_META("▁", "always", split=False)),
    "llama legacy": lambda: sentencepiece_bpe(normalizer=_LEGACY),
    "gemma": lambda: sentencepiece_bpe(
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
    ),
    "llama legacy, added": lambda: with_tokens(
        sentencepiece_bpe(normalizer=_LEGACY), AddedToken("[X]")
    ),
    "mistral split": lambda: sentencepiece_bpe(pre_tokenizer=_META("▁", "first", split=True)),
    "xlm-r": lambda: unigram(
        normalizer=precompiled(normalizers.Replace(Regex(" {2,}"), " ")),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _META()]),
    ),
    "t5": lambda: unigram(
        normalizer=precompiled(
            normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")
        ),
        pre_tokenizer=_META("▁", "always"),
    ),
    "t5 first": lambda: unigram(pre_tokenizer=_META("▁", "first")),
    "t5 unsplit": lambda: unigram(pre_tokenizer=_META("▁", "first", split=False)),
    "t5, added": lambda: with_tokens(
        unigram(pre_tokenizer=_META("▁", "always")), AddedToken("[X]"), AddedToken("  ")
    ),
    "bert": lambda: wordpiece(normalizer=_BERT, pre_tokenizer=pre_tokenizers.BertPreTokenizer()),
    "bert gpt2": lambda: wordpiece(normalizer=_BERT, pre_tokenizer=_BYTES(False)),
    "words": lambda: wordpiece(pre_tokenizer=pre_tokenizers.Whitespace()),
    "lstrip": lambda: with_tokens(bpe(pre_tokenizer=_BYTES(False)), AddedToken("[X]", lstrip=True)),
    "rstrip": lambda: with_tokens(bpe(pre_tokenizer=_BYTES(False)), AddedToken("[X]", rstrip=True)),
    "across": lambda: with_tokens(
        bpe(pre_tokenizer=_BYTES(False)), AddedToken("\na"), AddedToken("x a")
    ),
    "single word": lambda: with_tokens(
        bpe(pre_tokenizer=_BYTES(False)), AddedToken("the", single_word=True), AddedToken("  ")
    ),
    "replaced": lambda: bpe(
        normalizer=normalizers.Sequence(
            [normalizers.Replace("``", '"'), normalizers.Replace(Regex(r"\s+"), " ")]
        ),
        pre_tokenizer=_BYTES(False),
    ),
    "accents": lambda: bpe(
        normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
        pre_tokenizer=_BYTES(False),
    ),
}  # fmt: skip
