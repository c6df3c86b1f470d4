"""tiktoken in place of the tokenizers library: the same ids, or a reason why not."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lightning_llm.data.corpus import FileCorpus
from lightning_llm.data.prepare import PreparedText
from lightning_llm.data.text_encoder import TextEncoder
from lightning_llm.data.tiktoken_encoding import HARD_TEXTS, UnsuitableError, tiktoken_encoder
from lightning_llm.data.tokenizer import TokenizerSpec, encode_texts, train_tokenizer

pytest.importorskip("tiktoken", reason="the extra lightning-llm[tiktoken] is not installed")

LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def corpus() -> tuple[str, ...]:
    words = (
        "the of print self.value == None, 12345 naïve Straße 中文 文本 日本 don't \n\n\t#".split(
            " "
        )
    )
    draw = random.Random(1)
    return tuple(" ".join(draw.choices(words, k=60)) for _ in range(200))


@cache
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(
        TokenizerSpec("bpe", vocab_size=500, special_tokens=("<|x|>",)), corpus()
    )


def changed(change: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerFast:
    """The trained tokenizer with something changed in its description."""
    description = json.loads(trained().backend_tokenizer.to_str())
    change(description)
    backend = Tokenizer.from_str(json.dumps(description))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def byte_level(**options: bool) -> dict[str, Any]:
    defaults = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "ByteLevel", **defaults, **options}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def gpt2(description: dict[str, Any]) -> None:
    description["pre_tokenizer"] = byte_level(use_regex=True)


def llama_3(description: dict[str, Any]) -> None:
    steps = [split(LLAMA_3_SPLIT), byte_level()]
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    description["model"]["ignore_merges"] = True


def qwen(description: dict[str, Any]) -> None:
    llama_3(description)
    description["model"]["ignore_merges"] = False
    description["normalizer"] = {"type": "NFC"}


SUITABLE = {
    "ours": trained,
    "gpt2": lambda: changed(gpt2),
    "llama 3": lambda: changed(llama_3),
    "qwen": lambda: changed(qwen),
}


@pytest.mark.parametrize("name", SUITABLE)
def test_ids_are_those_of_the_tokenizer(name: str) -> None:
    tokenizer = SUITABLE[name]()
    encode = tiktoken_encoder(tokenizer)
    draw = random.Random(2)
    scraps = [
        chr(draw.choice([draw.randrange(0x250), draw.randrange(0xD800)])) for _ in range(3000)
    ]
    random_texts = ["".join(draw.choices(scraps, k=40)) for _ in range(200)]
    # Names of what stands between short texts inside, and texts of spaces that no border may join.
    hard = ["", "", "a\x00<|border of texts|>\x00b", "  ", "\n\n", "x" * 100_000, " ", "end"]
    texts = [*HARD_TEXTS, *corpus(), *random_texts, *hard]
    draw.shuffle(texts)
    expected = [list(ids) for ids in encode_texts(tokenizer, texts)]
    for text, ids, right in zip(texts, encode(texts), expected, strict=True):
        assert ids.tolist() == right, repr(text[:80])
    assert [encode([text])[0].tolist() for text in texts] == expected


def test_names_of_added_tokens_go_through_the_tokenizer() -> None:
    tokenizer = changed(gpt2)
    tokenizer.add_tokens(["naïve"])
    text = "a naïve <|endoftext|> text"
    [expected] = encode_texts(tokenizer, [text])
    assert tokenizer.convert_tokens_to_ids("naïve") in expected
    ids = tiktoken_encoder(tokenizer)(["before", text, "after"])[1]
    assert ids.tolist() == list(expected)


def swap_merges(description: dict[str, Any]) -> None:
    merges = description["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_merges, "order of the merges"),
        (lambda d: d.update(normalizer={"type": "NFKC"}), "normalizer NFKC"),
        (lambda d: d.update(pre_tokenizer=byte_level(add_prefix_space=True)), "pre-tokens"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokens"),
        (lambda d: d["model"].update(dropout=0.1), "no plain byte-level BPE"),
    ],
)
def test_what_tiktoken_cannot_do_is_told(change: Callable, reason: str) -> None:
    with pytest.raises(UnsuitableError, match=reason):
        tiktoken_encoder(changed(change))


def test_without_tiktoken_the_tokenizer_encodes(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with caplog.at_level("INFO"), TextEncoder(trained(), threads=2) as encode:
        for _ in range(2):
            assert [ids.tolist() for ids in encode(corpus())] == [
                list(ids) for ids in encode_texts(trained(), corpus())
            ]
    assert "encoding with the tokenizers library: tiktoken is not installed" in caplog.text


def test_other_ids_on_the_users_text_are_noticed(monkeypatch: Any, caplog: Any) -> None:
    """The proof is on the text itself: an encoder that is wrong there is not used."""
    from lightning_llm.data import text_encoder

    def wrong(tokenizer: Any) -> Any:
        right = tiktoken_encoder(tokenizer)

        def encode(texts: Sequence[str]) -> list[np.ndarray]:
            pairs = zip(texts, right(texts), strict=True)
            return [ids if text in HARD_TEXTS else ids[::-1] for text, ids in pairs]

        return encode

    monkeypatch.setattr(text_encoder, "tiktoken_encoder", wrong)
    with caplog.at_level("INFO"), TextEncoder(trained(), threads=2) as encode:
        batches = [[ids.tolist() for ids in encode(corpus())] for _ in range(2)]
    assert batches[0] == batches[1] == [list(ids) for ids in encode_texts(trained(), corpus())]
    assert "tiktoken gives other ids" in caplog.text


def test_stores_are_the_same_to_the_byte(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    lines = [json.dumps({"text": text}) for text in corpus() * 80]  # several batches
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    def prepared(cache: str) -> bytes:
        text = PreparedText(
            FileCorpus((tmp_path / "a.jsonl",)),
            tokenizer_spec=TokenizerSpec("bpe", vocab_size=500),
            cache_dir=tmp_path / cache,
        )
        return (text.prepare()["train"].path / "tokens.bin").read_bytes()

    with caplog.at_level("INFO"):
        fast = prepared("fast")
    assert "encoding with tiktoken: same ids" in caplog.text
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert prepared("slow") == fast
    assert len(np.frombuffer(fast, np.uint16)) > 500_000
