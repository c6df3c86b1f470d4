"""Tokenizers trained on a few lines, and texts that are hard for them."""

from __future__ import annotations

import random
from functools import cache

from transformers import PreTrainedTokenizerFast

from lightning_llm.data.tokenizer import (
    TokenizerSpec,
    train_tokenizer,
)

ALGORITHMS = ("bpe", "unigram", "wordpiece", "word", "char", "byte")
LOSSLESS = ("bpe", "unigram", "byte")
EOS = "<|endoftext|>"

ENGLISH = (
    "The quick brown fox jumps over the lazy dog. It didn't stop; it ran 3.14 miles!\n\n"
    "def area(radius):\n    # squared\n    return 3.14159 * radius ** 2\n\n\n"
    '\tif x_1 >= 10 and name != "fox":\r\n\t\tprint(f"{x_1:>8}")\n'
)
CHINESE = (
    "自然语言处理是人工智能的一个分支。机器学习、让计算机从数据中学习。我们用“模型”表示语言。\n"
)
CORPUS = [ENGLISH * 20, CHINESE * 20, ENGLISH + CHINESE]
HARD = (
    "",
    "\0\ufeff\u2028\x85\x1f",
    "\r\n\r\r\n  \n\t \v\f",
    "😀👩\u200d👩\u200d👧e\u0301\U0010ffff\ue000",
    "مرحبا हिन्दी ไทย 한국어 かな",
    "x<|endoftext|>y <|unk|> [SEP]SEP</s>",
    "##a ## ▁b <0x41> Ġ",
    " " * 300 + "a" * 300 + "1" * 50,
)
SPECIALS = ("SEP", "<|user|>", "naïve 中")


@cache
def trained(algorithm: str) -> PreTrainedTokenizerFast:
    size = None if algorithm in ("char", "byte") else 600
    spec = TokenizerSpec(algorithm, vocab_size=size, special_tokens=SPECIALS)  # type: ignore[arg-type]
    return train_tokenizer(spec, CORPUS)


def random_texts(alphabet: str, count: int = 60) -> list[str]:
    generator = random.Random(11)
    pieces = [*SPECIALS, EOS, "<|unk|>", *alphabet, *alphabet]
    return ["".join(generator.choices(pieces, k=generator.randrange(80))) for _ in range(count)]


ANY_CHARACTERS = "".join(
    chr(code)
    for code in random.Random(5).sample(range(0x30000), 400)
    if not 0xD800 <= code < 0xE000
)
