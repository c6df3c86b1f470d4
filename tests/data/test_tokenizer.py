"""Tokenizers: any text there and back, byte counts, reload elsewhere, special tokens as text."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lightning_llm.data.sources import read_documents
from lightning_llm.data.tokenizer import (
    TokenizerSpec,
    encode_texts,
    load_tokenizer,
    token_byte_lengths,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
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


# --- special tokens in text ---


def reserved(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {i for i, token in added.items() if token.special} - {tokenizer.unk_token_id}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens_in_text_are_text(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    texts = [*HARD, *random_texts(ENGLISH), EOS, f"a{EOS}b", *SPECIALS, "SEPSEP a SEPa"]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert not reserved(tokenizer) & set(ids.tolist()), text
        if algorithm in LOSSLESS:
            assert tokenizer.decode(ids) == text
    # The switch is put back: chat templates need special tokens read from text.
    assert tokenizer(EOS)["input_ids"] == [tokenizer.eos_token_id]


def test_special_names_are_spelled_as_any_text() -> None:
    """Not cut by the guard: the ids are those of a tokenizer without special tokens."""
    corpus = [f"the {EOS}{EOS}fox <|user|> " * 50]  # learns "<|" as one piece
    spec = TokenizerSpec("bpe", vocab_size=300, special_tokens=["<|user|>"])
    tokenizer = train_tokenizer(spec, corpus)
    model = Tokenizer(tokenizer.backend_tokenizer.model)
    model.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    texts = [EOS, f"the{EOS}{EOS} fox", "<|user|>", "<|unk|>"]
    expected = [encoding.ids for encoding in model.encode_batch(texts)]
    assert [ids.tolist() for ids in encode_texts(tokenizer, texts)] == expected


def test_name_that_training_learned_as_a_piece() -> None:
    """The merges of "SEP" end in the id of the special token: only the guard prevents it."""
    spec = TokenizerSpec("bpe", vocab_size=400, special_tokens=["SEP"])
    tokenizer = train_tokenizer(spec, ["SEP SEP SEP " * 100])
    special = tokenizer.convert_tokens_to_ids("SEP")
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    assert special in backend.encode("SEP").ids
    for text in ("SEP", "SEP SEPSEP", "xSEP中SEP"):
        (ids,) = encode_texts(tokenizer, [text])
        assert special not in ids
        assert tokenizer.decode(ids) == text


def sentencepiece_like(byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """Built as `transformers` converts a sentencepiece Unigram model such as T5's."""
    pieces = ["▁", "▁the", "▁fox", "中", *"abcdefhotxs", "</", "s>", "<", "/", ">", "0", "\n"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -3.0) for piece in [*pieces, *fallback])]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps) if byte_fallback else decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_name_within_a_pretrained_vocabulary() -> None:
    tokenizer = sentencepiece_like()
    tokenizer.backend_tokenizer.encode_special_tokens = True
    assert tokenizer.eos_token_id in tokenizer.backend_tokenizer.encode("the</s>").ids
    (ids,) = encode_texts(tokenizer, [" the</s> fox</s></s>"])
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == " the</s> fox</s></s>"


def test_special_token_of_one_character_cannot_be_text() -> None:
    tokenizer = train_tokenizer(TokenizerSpec("char"), ["ab§"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["§"]})
    with pytest.raises(ValueError, match="'§' can only be written with the id of a special token"):
        encode_texts(tokenizer, ["a§"])


# --- encoding ---


@pytest.mark.parametrize("algorithm", ["char", "byte"])
def test_table_look_up_equals_the_backend(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    texts = [*HARD, ENGLISH, CHINESE, *random_texts(ANY_CHARACTERS)]
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    expected = [encoding.ids for encoding in backend.encode_batch(texts)]
    backend.encode_special_tokens = False
    assert [ids.tolist() for ids in encode_texts(tokenizer, texts)] == expected


def test_batches_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*HARD, ENGLISH, CHINESE] * 3
    whole = encode_texts(trained("bpe"), texts)
    monkeypatch.setattr("lightning_llm.data.tokenizer_encoding._BATCH_CHARACTERS_PER_CORE", 7)
    parts = encode_texts(trained("bpe"), texts)
    assert [ids.tolist() for ids in parts] == [ids.tolist() for ids in whole]
    assert encode_texts(trained("bpe"), []) == []


@pytest.mark.parametrize("algorithm", ["bpe", "char"])
def test_what_is_no_text(algorithm: str) -> None:
    with pytest.raises(ValueError, match=r"texts\[1\]: character 2 is a lone surrogate"):
        encode_texts(trained(algorithm), ["ok", "ab\ud800"])
    with pytest.raises(TypeError, match=r"texts\[0\]: expected a string, got int"):
        encode_texts(trained(algorithm), [5])  # type: ignore[list-item]


def test_nothing_is_truncated_and_nothing_warns(tmp_path: Path) -> None:
    tokenizer = trained("bpe")
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["truncation"] = {
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    settings["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": EOS,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 8}))
    loaded = load_tokenizer(tmp_path)
    short, long = encode_texts(loaded, ["a", ENGLISH])
    assert len(short) == 1
    assert loaded.decode(long) == ENGLISH
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ids_do_not_depend_on_where_a_file_is_cut(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ENGLISH + CHINESE) * 10
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr("lightning_llm.data.readers_text.PIECE_BYTES", 450)
    (document,) = read_documents(tmp_path / "a.txt")
    pieces = list(document.pieces)
    assert len(pieces) > 8
    (whole,) = encode_texts(trained(algorithm), [text])
    assert np.concatenate(encode_texts(trained(algorithm), pieces)).tolist() == whole.tolist()


# --- bytes of each id ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_byte_lengths_add_up(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    lengths = token_byte_lengths(tokenizer)
    assert lengths is not None
    assert lengths.shape == (vocabulary_size(tokenizer),)
    assert lengths.dtype == np.int64
    texts = [*HARD, ENGLISH, CHINESE, *random_texts(ANY_CHARACTERS), *random_texts(CHINESE)]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        if algorithm in LOSSLESS or tokenizer.unk_token_id not in ids:
            assert lengths[ids].sum() == len(text.encode())
    for token in (EOS, *SPECIALS):
        assert lengths[tokenizer.convert_tokens_to_ids(token)] == 0


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_byte_lengths_of_sentencepiece(byte_fallback: bool) -> None:
    tokenizer = sentencepiece_like(byte_fallback)
    lengths = token_byte_lengths(tokenizer)
    assert lengths is not None
    for text in (" the fox 中", " 😀é\0"[: None if byte_fallback else 1], "the\n  fox"):
        (ids,) = encode_texts(tokenizer, [text])
        assert lengths[ids].sum() == len(text.encode())
    assert lengths[tokenizer.eos_token_id] == lengths[tokenizer.unk_token_id] == 0


def test_byte_lengths_count_ordinary_added_tokens() -> None:
    tokenizer = train_tokenizer(TokenizerSpec("bpe", vocab_size=300), CORPUS)
    tokenizer.add_tokens([AddedToken("    ", special=False), AddedToken("中国", special=False)])
    lengths = token_byte_lengths(tokenizer)
    (ids,) = encode_texts(tokenizer, ["a    中国b"])
    assert lengths is not None
    assert lengths[ids].sum() == len("a    中国b".encode())
    assert tokenizer.convert_tokens_to_ids("中国") in ids


def test_byte_lengths_unknown_where_spaces_are_lost() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##n": 2}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert token_byte_lengths(bert) is None
    backend.decoder = decoders.WordPiece()
    assert token_byte_lengths(PreTrainedTokenizerFast(tokenizer_object=backend)) is None


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
