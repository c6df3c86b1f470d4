"""Strings in, strings out: spaces, characters of several tokens, special tokens, stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_models import CharacterTokenizer, small_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer
from lightning_llm.generation import generate
from lightning_llm.generation.text import StopStrings, decode_continuation, encode_prompts

TEXTS = ["the cat sat on the mat", "naïve 你好 🙂 café", "def f(x):\n    return x"] * 30
SIZES = {"bpe": 300, "unigram": 280, "wordpiece": 80, "word": 30, "char": None, "byte": None}


def trained(algorithm: str) -> PreTrainedTokenizerFast:
    size = SIZES[algorithm]
    spec = TokenizerSpec(algorithm) if size is None else TokenizerSpec(algorithm, vocab_size=size)
    return train_tokenizer(spec, iter(TEXTS))


@pytest.mark.parametrize("algorithm", SIZES)
@pytest.mark.parametrize("text", TEXTS[:3])
def test_prompt_and_continuation_make_up_the_text(algorithm: str, text: str) -> None:
    tokenizer = trained(algorithm)
    ids = tokenizer(text)["input_ids"]
    if tokenizer.decode(ids) != text:
        pytest.skip(f"the {algorithm} tokenizer does not know all of this text")
    for cut in range(1, len(ids)):
        start = tokenizer.decode(ids[:cut])
        if not text.startswith(start):
            continue  # within a character: no prompt ends there
        assert start + decode_continuation(tokenizer, ids[:cut], ids[cut:]) == text


def with_decoder(vocabulary: list[str], pre_tokenizer: Any, decoder: Any) -> Any:
    ids = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=vocabulary[0]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_decoders_that_drop_the_first_space() -> None:
    """As Llama 2's, whose "▁sat" alone decodes to "sat"."""
    words = ["<unk>", "▁the", "▁cat", "▁sat"]
    tokenizer = with_decoder(words, pre_tokenizers.Metaspace(), decoders.Metaspace())
    assert tokenizer.decode([3]) == "sat"
    assert decode_continuation(tokenizer, [1, 2], [3]) == " sat"


def test_pieces_of_a_word_are_joined_to_the_prompt() -> None:
    """As BERT's, whose "##s" alone decodes to "##s"."""
    pieces = ["<unk>", "the", "cat", "##s", "sat"]
    tokenizer = with_decoder(pieces, pre_tokenizers.Whitespace(), decoders.WordPiece())
    assert decode_continuation(tokenizer, [1, 2], [3, 4]) == "s sat"


def test_special_tokens_are_no_text() -> None:
    tokenizer = trained("byte")
    new = [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id]
    assert decode_continuation(tokenizer, tokenizer("x")["input_ids"], new) == "ab"


def test_empty_prompts_start_from_the_token_that_separates_texts() -> None:
    tokenizer = trained("byte")
    assert encode_prompts(tokenizer, ["", "a"]) == [[tokenizer.eos_token_id], [97]]
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert encode_prompts(tokenizer, [""]) == [[tokenizer.bos_token_id]]
    tokenizer = CharacterTokenizer()
    tokenizer.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty and the tokenizer has no bos_to"):
        encode_prompts(tokenizer, ["a", ""])


def test_a_text_that_a_tokenizer_closes_is_opened_again() -> None:
    class Closing(CharacterTokenizer):
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [*super().__call__(text)["input_ids"], 0]}

    assert encode_prompts(Closing(), ["ab", ""]) == [[66, 67], [0]]


def test_strings_equal_token_ids() -> None:
    model, tokenizer = small_model(), CharacterTokenizer()
    prompts = ["ab", "a longer one"]
    found = generate(model, prompts, tokenizer=tokenizer, max_new_tokens=12)
    for prompt, text in zip(prompts, found):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        row = generate(model, ids, max_new_tokens=12, eos_token_id=0)[0, len(prompt) :].tolist()
        assert text == tokenizer.decode(row, skip_special_tokens=True)
        assert text


@pytest.mark.parametrize("num_beams", [1, 3])
def test_text_ends_before_the_first_stop_string(num_beams: int) -> None:
    model, tokenizer = small_model(), CharacterTokenizer()
    prompts = ["ab", "a longer one", "third"]
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_new_tokens": 30,
        "eos_token_id": [],
        "num_beams": num_beams,
    }
    free = generate(model, prompts, **options)
    stop = [free[0][5:8], free[1][9:11]]
    found = generate(model, prompts, stop=stop, **options)
    if num_beams == 1:
        for text, complete in zip(found, free):
            ends = [complete.find(string) for string in stop]
            assert text == complete[: min((end for end in ends if end >= 0), default=30)]
    assert not any(string in text for string in stop for text in found)
    assert any(len(text) < 30 for text in found)
    one = generate(model, prompts, stop=stop[0], **options)
    assert not any(stop[0] in text for text in one)


def test_token_ids_end_with_the_stop_string() -> None:
    model, tokenizer = small_model(), CharacterTokenizer()
    ids = torch.tensor([tokenizer("ab")["input_ids"]])
    options: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": []}
    free = generate(model, ids, **options)
    text = tokenizer.decode(free[0, 2:].tolist(), skip_special_tokens=True)
    found = generate(model, ids, tokenizer=tokenizer, stop=text[7:9], **options)
    assert torch.equal(found, free[:, : 2 + text.find(text[7:9]) + 2])


def test_stop_string_of_characters_that_are_several_tokens() -> None:
    tokenizer = trained("byte")
    stop = StopStrings(tokenizer, ["🙂🙂"])
    ids = torch.tensor([tokenizer("x" * 50 + "🙂🙂")["input_ids"]])
    assert stop.hits(ids).tolist() == [True]
    assert stop.hits(ids[:, :-1]).tolist() == [False]
    assert stop.cut("ab🙂🙂c") == "ab"
    assert stop.cut("ab🙂c") == "ab🙂c"


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="stop holds an empty string"):
        generate(small_model(), ["a"], tokenizer=CharacterTokenizer(), stop=["x", ""])


def test_work_per_token_does_not_grow_with_the_text() -> None:
    lengths = []

    class Watching(CharacterTokenizer):
        def decode(self, ids: Sequence[int], skip_special_tokens: bool, **_: Any) -> str:
            lengths.append(len(ids))
            return super().decode(ids, skip_special_tokens)

    model = small_model(max_seq_len=200)
    generate(model, ["a"], tokenizer=Watching(), stop="~~~~", max_new_tokens=150, eos_token_id=[])
    # The final two decode prompt and continuation whole.
    assert max(lengths[:-2]) <= 4 * 4 + 8
