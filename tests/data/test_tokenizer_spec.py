"""TokenizerSpec as written in Python and YAML, and the even sample that training reads."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError
from pathlib import Path

import jsonargparse
import pytest
import yaml

from lightning_llm.data.tokenizer import TokenizerSpec, train_tokenizer
from lightning_llm.data.tokenizer_training import sample_evenly


def test_positional_and_frozen() -> None:
    spec = TokenizerSpec("bpe", vocab_size=8192)
    assert (spec.algorithm, spec.vocab_size, spec.max_vocab_size) == ("bpe", 8192, 8192)
    assert TokenizerSpec().max_vocab_size == 32_000
    with pytest.raises(FrozenInstanceError):
        spec.vocab_size = 3  # type: ignore[misc]
    assert hash(TokenizerSpec(special_tokens=["<|a|>"])) == hash(
        TokenizerSpec(special_tokens=("<|a|>",))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "bbpe"}, "algorithm='bbpe' must be one of bpe, unigram, wordpiece, word"),
        ({"normalization": "NFC"}, "normalization='NFC' must be 'nfc', 'nfkc' or None"),
        ({"min_frequency": 0}, "min_frequency=0 must be at least 1"),
        ({"max_training_bytes": 0}, "max_training_bytes=0 must be at least 1"),
        ({"special_tokens": ["ab", "ab"]}, r"special_tokens=\['ab', 'ab'\] has duplicates"),
        ({"special_tokens": [" a "]}, "special token ' a ' must be a string of at least 2"),
        ({"special_tokens": ["<|endoftext|>"]}, "'<|endoftext|>' is always there; leave it out"),
        ({"pretrained": "gpt2", "vocab_size": 9}, "vocab_size=9 is set by pretrained='gpt2'"),
        ({"algorithm": "byte", "vocab_size": 257}, "vocab_size=257 is fixed by algorithm='byte'"),
        ({"pretrained": "bpe"}, r"an algorithm: TokenizerSpec\(algorithm='bpe'\), in a recipe"),
        ({"vocab_size": 256}, "vocab_size=256 must be at least 257 for algorithm='bpe'"),
        (
            {"algorithm": "word", "vocab_size": 3, "special_tokens": ["<|a|>"]},
            "vocab_size=3 must be at least 4 for algorithm='word': 3 special tokens and 1",
        ),
    ],
)
def test_problems(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerSpec(**options)  # type: ignore[arg-type]


def test_all_problems_in_one_error() -> None:
    with pytest.raises(ValueError, match=r"algorithm='x'.*; min_frequency=0.*; max_training_bytes"):
        TokenizerSpec("x", min_frequency=0, max_training_bytes=-1)  # type: ignore[arg-type]


def test_single_string_is_no_list() -> None:
    with pytest.raises(TypeError, match=r"special_tokens='<\|a\|>' must be a list of strings"):
        TokenizerSpec(special_tokens="<|a|>")


def test_pretrained_is_not_trained() -> None:
    with pytest.raises(ValueError, match="is to be loaded, not trained: use load_tokenizer"):
        train_tokenizer(TokenizerSpec(pretrained="gpt2"), ["text"])


def test_in_a_parser() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--tokenizer", type=TokenizerSpec, default=TokenizerSpec())

    def parse(*arguments: str) -> TokenizerSpec:
        return parser.instantiate(parser.parse_args(list(arguments))).tokenizer

    assert parse() == TokenizerSpec()
    text = yaml.safe_dump({"algorithm": "word", "vocab_size": 99, "special_tokens": ["<|a|>"]})
    assert parse("--tokenizer", text) == TokenizerSpec(
        "word", vocab_size=99, special_tokens=["<|a|>"]
    )
    # The default of one algorithm never becomes the setting of another.
    assert parse("--tokenizer.pretrained=gpt2") == TokenizerSpec(pretrained="gpt2")
    assert parse("--tokenizer.algorithm=byte") == TokenizerSpec("byte")
    dumped = yaml.safe_load(parser.dump(parser.parse_args(["--tokenizer.algorithm=char"])))
    assert parse("--tokenizer", yaml.safe_dump(dumped["tokenizer"])) == TokenizerSpec("char")
    with pytest.raises(jsonargparse.ArgumentError, match="algorithm"):
        parser.parse_args(["--tokenizer.algorithm=bbpe"])


def test_fingerprint(tmp_path: Path) -> None:
    assert TokenizerSpec().fingerprint() == TokenizerSpec("bpe").fingerprint()
    assert TokenizerSpec().fingerprint() != TokenizerSpec(min_frequency=3).fingerprint()
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    for name in (tmp_path, file):
        before = TokenizerSpec(pretrained=str(name)).fingerprint()
        file.write_text('{"a": 1}')
        assert TokenizerSpec(pretrained=str(name)).fingerprint() != before
        file.write_text("{}")


def test_sample_is_whole_when_it_fits() -> None:
    texts = ["one", "", "two\n" * 10_000, "中" * 20_000]
    assert "".join(sample_evenly(iter(texts), 10**6)) == "".join(texts)


@pytest.mark.parametrize("bound", [100, 1000, 5000])
def test_sample_is_even_and_bounded(bound: int) -> None:
    texts = [f"{i:09d}\n" for i in range(3000)]  # 10 bytes each
    sample = sample_evenly(iter(texts), bound)
    assert bound // 2 <= sum(map(len, sample)) <= bound
    positions = [int(text) for text in sample]
    steps = {b - a for a, b in itertools.pairwise(positions)}
    assert len(steps) == 1
    assert positions[0] == 0
    assert positions[-1] + steps.pop() >= 3000


def test_sample_is_even_within_a_long_document() -> None:
    text = "".join(f"{i:09d}\n" for i in range(50_000))
    sample = "".join(sample_evenly([text], 100_000))
    numbers = [int(line) for line in sample.split("\n") if line]
    assert len(sample) <= 100_000
    assert numbers[-1] > 40_000


def test_bound_smaller_than_a_chunk_keeps_something() -> None:
    assert sample_evenly(["a long text"], 3) == ["a long text"]
