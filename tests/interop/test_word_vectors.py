"""Pretrained word vectors: three formats, any tokenizer, a start that a resumed run keeps."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_llm import CausalLM, TextDataModule
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer import encode_texts, train_tokenizer
from lightning_llm.interop.word_vectors import WordVectors, load_word_vectors, read_word_vectors
from lightning_llm.models import TransformerConfig

WORDS = ["the", ",", "cat", "sat", "春天", "walking", "walked", ". . .", "unheard"]
VECTORS = np.random.default_rng(0).standard_normal((len(WORDS), 6)).astype(np.float32)
TEXT = "The cat sat, the cat walked. 春天 the cat\n" * 200


def lines(words: list[str] = WORDS) -> list[str]:
    return [f"{w} {' '.join(map(repr, map(float, v)))}\n" for w, v in zip(words, VECTORS)]


def binary(*, ends: bytes = b"\n") -> bytes:
    rows = (w.encode() + b" " + struct.pack("<6f", *v) + ends for w, v in zip(WORDS, VECTORS))
    return b"9 6\n" + b"".join(rows).replace(b". . .", b".....")


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path) -> tuple[list[str], np.ndarray]:
    batches = list(read_word_vectors(path))
    words = [word.decode() for batch in batches for word in batch.words]
    return words, np.concatenate([batch.vectors for batch in batches])


@pytest.mark.parametrize("name", ["vectors", "vectors.gz"])
@pytest.mark.parametrize("kind", ["glove", "word2vec", "binary", "binary without line ends"])
def test_formats(tmp_path: Path, kind: str, name: str) -> None:
    contents: dict[str, str | bytes] = {
        "glove": "".join(lines()),
        "word2vec": "9 6\n" + "".join(lines()),
        "binary": binary(),
        "binary without line ends": binary(ends=b""),
    }
    words, vectors = read(write(tmp_path / name, contents[kind]))
    expected = [w.replace(". . .", ".....") if kind[0] == "b" else w for w in WORDS]
    assert words == expected
    np.testing.assert_array_equal(vectors, VECTORS)


def test_a_large_binary_file_in_blocks(tmp_path: Path) -> None:
    values = np.arange(60_000 * 10, dtype="<f4").reshape(-1, 10)
    rows = b"".join(f"w{i} ".encode() + row.tobytes() + b"\n" for i, row in enumerate(values))
    words, vectors = read(write(tmp_path / "large", b"60000 10\n" + rows))
    assert words == [f"w{i}" for i in range(60_000)]
    np.testing.assert_array_equal(vectors, values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r":1: expected a word and its vector"),
        ("a 1 2\nb 1\n", r":2: expected a word and 2 numbers, got 1"),
        ("a 1 2\nb 1 x\n", r":2: could not convert string to float"),
        ("a 1 2\nb 1 nan\n", r":2: the vector of b'b' is not finite"),
        ("3 2\na 1 2\nb 3 4\n", r"the header says 3 words, the file has 2"),
        ("1 2\na 1 2\nb 3 4\n", r"the header says 1 words, the file has 2"),
        ("0 2\n", r":1: the header says 0 words"),
        ("word\n", r":1: expected a word and 0 numbers"),
        (binary()[:-9], r"byte \d+: cut off within the vector of b'unheard'"),
        (binary() + b"more", r"byte \d+: more than the 9 words it names"),
        (b"9 6\n" + b"\xff" * 9000, r"byte 4: no word begins here"),
        (b"9 6\n" + binary()[4:60], r"cut off"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "bad", content))


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "vectors.gz", "".join(lines()))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut-off \.gz file"):
        read(path)


def embedding(size: int, dim: int) -> torch.Tensor:
    return 0.02 * torch.randn(size, dim, generator=torch.Generator().manual_seed(0))


def test_word_tokenizers_exactly(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TokenizerSpec("word", min_frequency=1), iter([TEXT]))
    weight = embedding(len(tokenizer), 6)
    before = weight.clone()
    path = write(tmp_path / "glove", "".join(lines()))
    coverage = load_word_vectors(weight, path, tokenizer)
    vocab = tokenizer.get_vocab()
    expected = {" cat": 2, " the": 0, "The": 0, ",": 1, " sat": 3, " walked": 6}
    rows = [vocab[token] for token in expected]
    chosen = VECTORS[list(expected.values())].astype(np.float64)
    got = weight[rows].double().numpy()
    # The same up to one shift and one factor.
    np.testing.assert_allclose(
        (got - got[0]) / np.linalg.norm(got[1] - got[0]),
        (chosen - chosen[0]) / np.linalg.norm(chosen[1] - chosen[0]),
        atol=1e-5,
    )
    assert torch.equal(weight[vocab["<|endoftext|>"]], before[vocab["<|endoftext|>"]])
    assert coverage.exact == len(rows)
    assert (coverage.composed, coverage.num_words) == (0, 9)
    changed = (weight != before).any(1)
    assert changed.sum() == coverage.exact
    assert weight[changed].std(correction=0) == pytest.approx(float(before.std()), rel=1e-4)


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_pieces_by_composition(tmp_path: Path, algorithm: Any) -> None:
    spec = TokenizerSpec(algorithm, vocab_size=290 if algorithm != "wordpiece" else 40)
    tokenizer = train_tokenizer(spec, iter([TEXT]))
    path = write(tmp_path / "glove", "".join(lines()))
    from lightning_llm.interop.word_vectors.tokens import token_vectors

    found = token_vectors(read_word_vectors(path), tokenizer)
    containing: dict[int, list[int]] = {}
    for row, word in enumerate(WORDS):
        text = word if word == "春天" else f" {word}"
        for index in set(encode_texts(tokenizer, [text])[0].tolist()):
            containing.setdefault(index, []).append(row)
    composed = np.flatnonzero(found.composed)
    assert len(composed) > 3
    for index in composed:
        expected = VECTORS[containing[index]].mean(0)
        np.testing.assert_allclose(found.vectors[index], expected, atol=1e-6)
    assert not set(containing) - set(np.flatnonzero(found.exact | found.composed))
    (cat,) = (ids for ids in encode_texts(tokenizer, [" cat"]))
    if len(cat) == 1:
        np.testing.assert_array_equal(found.vectors[cat[0]], VECTORS[2])


@pytest.mark.parametrize("dim", [4, 6, 16])
def test_widths(tmp_path: Path, dim: int) -> None:
    tokenizer = train_tokenizer(TokenizerSpec("word", min_frequency=1), iter([TEXT]))
    path = write(tmp_path / "glove", "".join(lines()))
    weights = []
    for _ in range(2):
        weights.append(embedding(len(tokenizer), dim))
        load_word_vectors(weights[-1], path, tokenizer, std=1.0)
    assert torch.equal(*weights)
    vocab = tokenizer.get_vocab()
    tokens = {" the": 0, "The": 0, ",": 1, " cat": 2, " sat": 3, " walked": 6}
    got = torch.cdist(*[weights[0][[vocab[t] for t in tokens]].double()] * 2)
    source = torch.tensor(VECTORS[list(tokens.values())], dtype=torch.float64)
    distances = torch.cdist(source, source)
    if dim >= 6:  # nothing lost: all distances, up to one factor
        assert torch.allclose(got / got.max(), distances / distances.max(), atol=1e-5)
    else:  # as near as any plane of this many dimensions comes
        centred = source - source.mean(0)
        kept = torch.linalg.svdvals(centred)[:dim].square().sum()
        values = weights[0][[vocab[t] for t in tokens]].double()
        values = values - values.mean(0)
        spread = torch.linalg.svdvals(values).square()
        most = torch.linalg.svdvals(centred)[:dim].square() / kept
        assert torch.allclose(spread / spread.sum(), most)


def test_nothing_in_common(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TokenizerSpec("word", min_frequency=1), iter([TEXT]))
    path = write(tmp_path / "glove", "unheard 1 2\n")
    with pytest.raises(ValueError, match="none of its 1 words is in the vocabulary"):
        load_word_vectors(embedding(len(tokenizer), 4), path, tokenizer)
    with pytest.raises(ValueError, match="the embedding has 3 rows"):
        load_word_vectors(embedding(3, 4), path, tokenizer)


def run(tmp_path: Path, callback: WordVectors, steps: int, **fit: Any) -> tuple[Any, Any]:
    (tmp_path / "text.txt").write_text(TEXT)
    data = TextDataModule(
        train_files=tmp_path / "text.txt",
        tokenizer=TokenizerSpec("word", min_frequency=1),
        seq_len=16,
        micro_batch_size=2,
        cache_dir=tmp_path / "cache",
    )
    torch.manual_seed(0)
    config = TransformerConfig(n_layers=1, dim=16, n_heads=2, max_seq_len=16)
    model = CausalLM(config, vocab_size=data.vocab_size)
    seen: list[torch.Tensor] = []

    class Recorder(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(model.model.embedding.weight.detach().clone())

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(model.model.embedding.weight.detach().clone())

    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, Recorder()],
    )
    trainer.fit(model, data, **fit)
    return trainer, seen


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_starts_from_the_vectors_frozen_and_resumes(tmp_path: Path) -> None:
    path = write(tmp_path / "glove", "".join(lines()))
    first = WordVectors(path, freeze_steps=2)
    trainer, seen = run(tmp_path, first, 4)
    assert first.coverage is not None
    assert first.coverage.of_corpus == pytest.approx(9 / 14, rel=1e-2)
    assert "of the corpus" in str(first.coverage)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])
    _, free = run(tmp_path, WordVectors(path), 1)
    assert torch.equal(free[0], seen[0])
    assert not torch.equal(free[1], seen[0])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = WordVectors(path, freeze_steps=2)
    _, resumed = run(tmp_path, again, 6, ckpt_path=tmp_path / "model.ckpt")
    assert torch.equal(resumed[0], seen[-1])
    assert not torch.equal(resumed[1], seen[-1])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="freeze_steps=-1"):
        WordVectors("glove", freeze_steps=-1)
    with pytest.raises(TypeError, match="no embedding found in CausalLM"):
        run(tmp_path, WordVectors("glove", embedding="nowhere"), 1)
