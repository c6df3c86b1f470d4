"""Encoding a corpus: the ids of each document, whatever the batches and chunks."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import numpy as np
import pytest

from lightning_llm.data import TokenizerSpec, TokenStore, TokenStoreWriter, encoding
from lightning_llm.data.sources import Document
from lightning_llm.data.tokenizer import encode_texts, train_tokenizer

LINES = ["for x in y:", "    return 1", "", "", "x = 3  ", "“Ja”, sagte er.", "\ttab", "字", "\r"]


@pytest.fixture(scope="module")
def tokenizer():
    text = "\n".join(random.Random(0).choices(LINES, k=2_000))
    return train_tokenizer(TokenizerSpec("bpe", vocab_size=400), [text])


def document(rng: random.Random) -> str:
    return "\n".join(rng.choices(LINES, k=rng.randrange(40)))


@pytest.mark.parametrize("batch", [1, 300, 1 << 20])
@pytest.mark.parametrize("chunk", [1, 50])
def test_documents_keep_their_ids(tmp_path, tokenizer, monkeypatch, batch, chunk):
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS_PER_CORE", batch)
    monkeypatch.setattr(encoding, "_CHUNK_CHARACTERS", chunk)
    rng = random.Random(1)
    texts = [document(rng) for _ in range(60)]
    labels = [rng.choice(["train", "val"]) for _ in texts]
    # Pieces cut at spaces, as readers do: the pieces' own ids are expected, in order.
    pieces = [re.split(r"(?<= )(?=\S)", text) for text in texts]
    with (
        TokenStoreWriter(tmp_path / "train", vocab_size=400) as train,
        TokenStoreWriter(tmp_path / "val", vocab_size=400) as val,
    ):
        encoding.encode_documents(
            zip(labels, (Document(iter(parts), "x") for parts in pieces)),
            tokenizer,
            {"train": train, "val": val},
        )
    for part in ("train", "val"):
        expected = [
            np.concatenate([*encode_texts(tokenizer, parts), [tokenizer.eos_token_id]])
            for label, parts in zip(labels, pieces)
            if label == part
        ]
        store = TokenStore(tmp_path / part)
        assert len(store) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(store, expected))


def test_chunks_end_between_two_lines_of_text():
    rng = random.Random(2)
    for _ in range(200):
        text = document(rng)
        size = rng.randrange(1, 60)
        chunks = list(encoding._chunks(text, size))
        assert "".join(chunks) == text
        for chunk, following in pairwise(chunks):
            assert len(chunk) >= size
            assert re.search(r"\S\r?\n\Z", chunk)
            assert not following[0].isspace()


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word", "char", "byte"])
def test_our_tokenizers_may_be_given_line_by_line(algorithm):
    options = {} if algorithm in ("char", "byte") else {"vocab_size": 300}
    trained = train_tokenizer(TokenizerSpec(algorithm, **options), ["\n".join(LINES)] * 20)
    assert encoding._splits_at_lines(trained)


def test_tokenizers_that_see_the_start_of_a_text_are_given_whole_pieces(tokenizer):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "</s>": 1, "▁A": 2, "▁": 3, "a": 4}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    prefixing = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert not encoding._splits_at_lines(prefixing)
    documents = [("train", Document(["a\na\na"], "x"))]
    cut, whole = (list(encoding._batches(iter(documents), cut)) for cut in (True, False))
    assert whole == [[("train", "a\na\na"), ("train", None)]]
    assert cut == whole  # shorter than a chunk


def test_many_empty_documents_do_not_gather(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS_PER_CORE", 100)
    documents = (("train", Document([""], "x")) for _ in range(10_000))
    assert max(map(len, encoding._batches(documents, True))) < 100
