"""Encoding a corpus: the ids of each document, whatever the batches and chunks."""

from __future__ import annotations

import random
import re

import pytest

from lightning_llm.data import TokenizerSpec, TokenStore, TokenStoreWriter, encoding
from lightning_llm.data.safe_cuts import ANYWHERE
from lightning_llm.data.sources import Document
from lightning_llm.data.tokenizer import train_tokenizer

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
            [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            for label, text in zip(labels, texts)
            if label == part
        ]
        assert [ids.tolist() for ids in TokenStore(tmp_path / part)] == expected


def test_many_empty_documents_do_not_gather(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS_PER_CORE", 100)
    documents = (("train", Document([""], "x")) for _ in range(10_000))
    assert max(map(len, encoding._batches(documents, ANYWHERE))) < 100
