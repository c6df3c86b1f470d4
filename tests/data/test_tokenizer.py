"""Tokenizers: any text there and back, vocabularies, reload elsewhere, identity."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from trained_tokenizers import (
    ALGORITHMS,
    ANY_CHARACTERS,
    CHINESE,
    CORPUS,
    ENGLISH,
    EOS,
    HARD,
    LOSSLESS,
    SPECIALS,
    random_texts,
    trained,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lightning_llm.data.tokenizer import (
    TokenizerSpec,
    encode_texts,
    load_tokenizer,
    token_byte_lengths,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)

# --- there and back ---


@pytest.mark.parametrize("algorithm", LOSSLESS)
def test_any_text_there_and_back(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    texts = [*HARD, *random_texts(ANY_CHARACTERS), *random_texts(ENGLISH + CHINESE)]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert ids.dtype == np.int32


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_bytes_the_corpus_did_not_show(algorithm: str) -> None:
    tokenizer = train_tokenizer(TokenizerSpec(algorithm, vocab_size=300), ["abc abd " * 50])
    for text, ids in zip(HARD, encode_texts(tokenizer, HARD), strict=True):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("algorithm", ["wordpiece", "word", "char"])
def test_known_text_there_and_back(algorithm: str) -> None:
    tokenizer = train_tokenizer(
        TokenizerSpec(algorithm, vocab_size=None, min_frequency=1), [ENGLISH, CHINESE]
    )
    texts = [ENGLISH, CHINESE, ENGLISH.split("\n\n")[1], CHINESE[5:20], "the lazy dog."]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert tokenizer.unk_token_id not in ids or algorithm == "word"
        if algorithm != "word" or text != "the lazy dog.":
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("algorithm", ["wordpiece", "word", "char"])
def test_unknown_is_one_token(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    (ids,) = encode_texts(tokenizer, ["fox龘 fox"])
    assert np.count_nonzero(ids == tokenizer.unk_token_id) == 1
    assert "龘" not in tokenizer.decode(ids)


@pytest.mark.parametrize("algorithm", ["word", "wordpiece", "char"])
def test_chinese_goes_by_characters(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    (ids,) = encode_texts(tokenizer, ["机器学习让人"])
    assert tokenizer.convert_ids_to_tokens(ids) == list("机器学习让人")


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_chinese_has_pieces_of_several_characters(algorithm: str) -> None:
    generator = random.Random(2)
    words = ["".join(generator.choices(CHINESE, k=2)) for _ in range(60)]
    text = "".join(generator.choices(words, k=4000)) + "\n"
    tokenizer = train_tokenizer(TokenizerSpec(algorithm, vocab_size=800), [text])
    (ids,) = encode_texts(tokenizer, [text])
    assert len(ids) < len(text)


def test_words_carry_their_space_and_punctuation_stands_alone() -> None:
    (ids,) = encode_texts(trained("word"), ["The quick fox; it ran!\n    return"])
    tokens = trained("word").convert_ids_to_tokens(ids)
    assert tokens[:2] == ["The", " quick"]
    assert ";" in tokens
    assert "\n" in tokens


# --- vocabulary ---


def test_character_ids_are_the_corpus_in_order() -> None:
    text = "hello\nworld!"
    tokenizer = train_tokenizer(TokenizerSpec("char"), [text[:5], text[5:]])
    (ids,) = encode_texts(tokenizer, [text])
    by_hand = {character: 2 + i for i, character in enumerate(sorted(set(text)))}
    assert ids.tolist() == [by_hand[character] for character in text]
    assert vocabulary_size(tokenizer) == len(set(text)) + 2  # end of text and unknown


def test_character_limit_keeps_the_frequent() -> None:
    tokenizer = train_tokenizer(TokenizerSpec("char", vocab_size=4), ["aaabbc"])
    assert set(tokenizer.get_vocab()) == {EOS, "<|unk|>", "a", "b"}


def test_byte_ids_are_the_bytes() -> None:
    tokenizer = trained("byte")
    text = "a\0é中😀"
    (ids,) = encode_texts(tokenizer, [text])
    assert bytes(ids.astype(np.uint8)) == text.encode()
    assert tokenizer.eos_token_id == 256
    assert vocabulary_size(tokenizer) == 256 + 1 + len(SPECIALS)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word"])
@pytest.mark.parametrize("size", [264, 400])
def test_vocabulary_size_counts_everything(algorithm: str, size: int) -> None:
    many_letters = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    corpus = [ENGLISH * 5, " ".join(f"word{i}" for i in range(500)) * 2, many_letters * 2]
    tokenizer = train_tokenizer(TokenizerSpec(algorithm, vocab_size=size), corpus)
    assert vocabulary_size(tokenizer) == len(tokenizer) == size


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word"])
def test_small_corpus_gives_a_smaller_vocabulary_and_says_so(
    algorithm: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = train_tokenizer(TokenizerSpec(algorithm, vocab_size=5000), ["a b a b"])
    assert len(tokenizer) < 300
    assert f"gives {len(tokenizer)} of the 5000 ids" in caplog.text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_end_of_text_and_padding(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    assert tokenizer.eos_token == tokenizer.pad_token == EOS
    assert (tokenizer.unk_token is None) == (algorithm in LOSSLESS)
    assert set(SPECIALS) <= set(tokenizer.get_vocab())
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == ""


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "word", "char", "byte"])
def test_training_repeats(algorithm: str) -> None:
    spec = TokenizerSpec(algorithm, vocab_size=None if algorithm in ("char", "byte") else 300)
    one, two = (train_tokenizer(spec, iter(CORPUS)) for _ in range(2))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(two)


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a != "byte"])
def test_no_text_to_learn_from(algorithm: str) -> None:
    with pytest.raises(ValueError, match="no text to train the tokenizer on"):
        train_tokenizer(TokenizerSpec(algorithm), ["", ""])


@pytest.mark.parametrize("form", ["nfc", "nfkc"])
@pytest.mark.parametrize("algorithm", ["bpe", "word", "char", "byte"])
def test_normalization(algorithm: str, form: str) -> None:
    import unicodedata

    text = "e\u0301 ﬁ ½"
    size = None if algorithm in ("char", "byte") else 300
    spec = TokenizerSpec(algorithm, vocab_size=size, normalization=form, min_frequency=1)
    tokenizer = train_tokenizer(spec, [text])
    (ids,) = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids) == unicodedata.normalize(form.upper(), text)


# --- saving and loading ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_auto_tokenizer_loads_the_same(algorithm: str, tmp_path: Path) -> None:
    tokenizer = trained(algorithm)
    tokenizer.save_pretrained(tmp_path)
    texts = [text for text in [*HARD, ENGLISH, CHINESE] if not any(s in text for s in SPECIALS)]
    texts = [text for text in texts if "<|" not in text]
    ids = [array.tolist() for array in encode_texts(tokenizer, texts)]
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert other(texts, add_special_tokens=False)["input_ids"] == ids
    assert [other.decode(i) for i in ids] == [tokenizer.decode(i) for i in ids]
    assert other.decode(ids[-2]) == ENGLISH or algorithm not in LOSSLESS
    assert (other.eos_token_id, other.pad_token_id) == (tokenizer.eos_token_id,) * 2
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert [array.tolist() for array in encode_texts(loaded, texts)] == ids
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def gpt2_like() -> Tokenizer:
    """GPT-2's set-up at toy size: its pre-tokeniser, and one token for end, start and unknown."""
    vocab = {
        character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    vocab |= {"th": 256, "the": 257, EOS: 258}
    backend = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(EOS, special=True)])
    return backend


def test_bare_tokenizer_file(tmp_path: Path) -> None:
    gpt2_like().save(str(tmp_path / "tokenizer.json"))
    gpt2_like().save(str(tmp_path / "named.json"))
    for path in (tmp_path, str(tmp_path / "tokenizer.json"), tmp_path / "named.json"):
        tokenizer = load_tokenizer(path)
        assert tokenizer.eos_token_id == tokenizer.pad_token_id == 258
        for text in HARD:
            (ids,) = encode_texts(tokenizer, [text])
            assert 258 not in ids
            assert tokenizer.decode(ids) == text
            lengths = token_byte_lengths(tokenizer)
            assert lengths is not None
            assert lengths[ids].sum() == len(text.encode())


def test_file_beside_its_configuration(tmp_path: Path) -> None:
    backend = gpt2_like()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").eos_token == "<|end|>"


def test_loading_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer '.*missing': no such file"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"tokenizer '\./here': no such file"):
        load_tokenizer("./here")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"the folder holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"'no-such/tokenizer' cannot be loaded \(it is no local"):
        load_tokenizer("no-such/tokenizer")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer\.json' cannot be loaded: "):
        load_tokenizer(tmp_path / "tokenizer.json")
    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"has no end-of-text token\. Set eos_token in its"):
        load_tokenizer(tmp_path)


def test_slow_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **options: Slow())
    with pytest.raises(ValueError, match=r"Slow has no tokenizer\.json.*convert it first"):
        load_tokenizer("some/name")


def test_fingerprint_is_of_content(tmp_path: Path) -> None:
    one = trained("bpe")
    one.save_pretrained(tmp_path)
    other = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(one)
    other.add_tokens(["more"])
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(one)
    prints = Counter(tokenizer_fingerprint(trained(algorithm)) for algorithm in ALGORITHMS)
    assert max(prints.values()) == 1
    roles = load_tokenizer(tmp_path)
    roles.eos_token = "SEP"
    assert tokenizer_fingerprint(roles) != tokenizer_fingerprint(one)
