"""Tokenizers on any text: back as it was, no special ids, alone or in a batch."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_llm.data.tokenizer import (
    TokenizerSpec,
    encode_texts,
    token_byte_lengths,
    train_tokenizer,
)

ASCII = "The quick brown fox jumps over the lazy dog, 1234567890 times; it's fun!\n" * 14
SPECIALS = ("<|im_end|>", "</s>")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Pieces of special tokens in any arrangement, and characters that fool tokenizers.
TRAPS = st.lists(
    st.sampled_from(
        [
            "<|endoftext|>",
            "<|im_end|>",
            "<|",
            "endoftext",
            "|>",
            "</s>",
            " ",
            "\0",
            "\ufeff",
            "\u2028",
        ]
    ),
    max_size=8,
).map("".join)


@cache
def trained(algorithm: str):
    size = None if algorithm == "byte" else 300
    spec = TokenizerSpec(algorithm, vocab_size=size, special_tokens=SPECIALS)
    return train_tokenizer(spec, [ASCII])


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "byte"])
@given(st.one_of(TEXTS, TRAPS))
def test_any_text_comes_back(algorithm, text):
    tokenizer = trained(algorithm)
    [ids] = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    lengths = token_byte_lengths(tokenizer)
    assert sum(lengths[token] for token in ids) == len(text.encode())


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "byte"])
@given(st.lists(st.one_of(TEXTS, TRAPS), max_size=6))
def test_a_batch_is_its_texts_and_holds_no_special_id(algorithm, texts):
    tokenizer = trained(algorithm)
    batch = [list(ids) for ids in encode_texts(tokenizer, texts)]
    assert batch == [list(encode_texts(tokenizer, [text])[0]) for text in texts]
    special = set(tokenizer.all_special_ids)
    assert not special & {int(token) for ids in batch for token in ids}
