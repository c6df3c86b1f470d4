"""Encoding: special tokens in text are text, ids in order, the bytes each id stands for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
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
from transformers import PreTrainedTokenizerFast

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


def test_bpe_needs_fewer_tokens_than_unigram() -> None:
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    counts = {}
    for algorithm in ("bpe", "unigram"):
        tokenizer = train_tokenizer(TokenizerSpec(algorithm, vocab_size=1000), iter([text]))
        counts[algorithm] = len(encode_texts(tokenizer, [text])[0])
    assert counts["bpe"] < 0.95 * counts["unigram"]
