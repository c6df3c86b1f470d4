"""Training on ids that others wrote: nanoGPT's files, Megatron-LM's pairs, stores of ours."""

from __future__ import annotations

import pickle
import struct
from array import array
from itertools import accumulate, chain
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_llm import CausalLM
from lightning_llm.data import TokenDataModule, TokenizerSpec, TokenStoreWriter
from lightning_llm.data.tokenizer import train_tokenizer
from lightning_llm.models import TransformerConfig

EOS = 50
VOCAB = 51


@pytest.fixture
def documents() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [[*rng.integers(0, EOS, n).tolist(), EOS] for n in rng.integers(1, 40, 60)]


def nanogpt(path: Path, documents: list[list[int]]) -> Path:
    path.write_bytes(array("H", list(chain.from_iterable(documents))).tobytes())
    return path


def megatron(prefix: Path, documents: list[list[int]]) -> Path:
    """Write Megatron-LM's indexed dataset by its description, with `struct` alone."""
    sizes = [len(document) for document in documents]
    starts = [0, *accumulate(2 * size for size in sizes)][:-1]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(sizes), len(sizes) + 1)
    index += struct.pack(f"<{len(sizes)}i", *sizes) + struct.pack(f"<{len(sizes)}q", *starts)
    index += struct.pack(f"<{len(sizes) + 1}q", *range(len(sizes) + 1))
    Path(f"{prefix}.idx").write_bytes(index)
    nanogpt(Path(f"{prefix}.bin"), documents)
    return prefix


def ours(path: Path, documents: list[list[int]]) -> Path:
    with TokenStoreWriter(path, vocab_size=VOCAB) as writer:
        for document in documents:
            writer.add(document)
    return path


def module(store: Path, **options) -> TokenDataModule:
    defaults = {"seq_len": 16, "micro_batch_size": 4, "cache_dir": store.parent / "cache"}
    return TokenDataModule(train_store=store, **(defaults | options))


@pytest.mark.parametrize(
    "packing", [{"packing": "best_fit"}, {"mask_documents": True}, {"packing": "pad"}, {}]
)
def test_the_three_layouts_give_the_same_batches(tmp_path, documents, packing) -> None:
    bare = module(
        nanogpt(tmp_path / "train.bin", documents), vocab_size=VOCAB, eos_id=EOS, **packing
    )
    foreign = module(megatron(tmp_path / "mega", documents), vocab_size=VOCAB, **packing)
    own = module(ours(tmp_path / "store", documents), **packing)
    loaders = []
    for data in (bare, foreign, own):
        data.prepare_data()
        data.setup("fit")
        loaders.append(data.train_dataloader())
    for batches in zip(*loaders, strict=True):
        for other in batches[1:]:
            assert batches[0].keys() == other.keys()
            assert all(torch.equal(batches[0][key], other[key]) for key in other)
    assert own.vocab_size == bare.vocab_size == VOCAB
    assert bare.fingerprint != foreign.fingerprint


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
def test_a_model_trains_validates_and_resumes_on_nanogpt_files(tmp_path, documents) -> None:
    files = {
        "train_store": nanogpt(tmp_path / "train.bin", documents),
        "val_store": nanogpt(tmp_path / "val.bin", documents[:5]),
    }

    def fit(steps: int, checkpoint: str | None = None) -> tuple[pl.Trainer, CausalLM]:
        torch.manual_seed(0)
        config = TransformerConfig(vocab_size=VOCAB, n_layers=1, dim=16, n_heads=2, max_seq_len=16)
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = TokenDataModule(
            **files, vocab_size=VOCAB, seq_len=16, micro_batch_size=4, cache_dir=tmp_path / "c"
        )
        model = CausalLM(config)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return trainer, model

    _, whole = fit(6)
    half, _ = fit(3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(6, str(tmp_path / "half.ckpt"))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_tokenizer_gives_vocabulary_end_of_text_and_bytes(tmp_path) -> None:
    tokenizer = train_tokenizer(TokenizerSpec("byte"), iter(["abc"]))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    eos = tokenizer.eos_token_id
    path = nanogpt(tmp_path / "train.bin", [[*b"one", eos], [*b"two", eos]])
    data = module(path, tokenizer=tmp_path / "tokenizer", seq_len=8, packing="best_fit")
    data.prepare_data()
    data.setup("fit")
    assert [bytes(d[:-1].tolist()) for d in data.train_store] == [b"one", b"two"]
    assert data.vocab_size == eos + 1
    assert data.token_byte_lengths.tolist() == [1] * 256 + [0]
    with pytest.raises(ValueError, match="vocab_size=10, but the tokenizer has 257 ids"):
        module(path, tokenizer=tmp_path / "tokenizer", vocab_size=10).prepare_data()


def test_a_store_of_another_tokenizer_is_refused(tmp_path) -> None:
    tokenizer = train_tokenizer(TokenizerSpec("byte"), iter(["abc"]))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with TokenStoreWriter(tmp_path / "s", vocab_size=257, tokenizer_fingerprint="ab" * 32) as w:
        w.add([1, 2, 3])
    with pytest.raises(ValueError, match="made by another tokenizer"):
        module(tmp_path / "s", tokenizer=tmp_path / "tokenizer").prepare_data()


def test_what_is_missing_or_wrong_is_named(tmp_path, documents) -> None:
    path = nanogpt(tmp_path / "train.bin", documents)
    with pytest.raises(ValueError, match=r"nothing says how many ids.*vocab_size"):
        module(path).prepare_data()
    with pytest.raises(ValueError, match=r"id 50 at position \d+ is not in 0\.\.49"):
        module(path, vocab_size=50).prepare_data()
    with pytest.raises(ValueError, match=r"id 50 .* is not in 0\.\.49"):
        module(megatron(tmp_path / "mega", documents), vocab_size=50).prepare_data()
    with pytest.raises(ValueError, match=r"nothing says where they end. Give eos_id"):
        module(path, vocab_size=VOCAB, packing="best_fit").train_dataloader()
    with pytest.raises(ValueError, match="dtype='uint16' is for files of bare ids"):
        module(ours(tmp_path / "store", documents), dtype="uint16").prepare_data()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        module(tmp_path / "nowhere.bin", vocab_size=9).prepare_data()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        module(tmp_path / "nowhere", vocab_size=9).prepare_data()
    with pytest.raises(ValueError, match="no validation data: give val_store"):
        module(path, vocab_size=VOCAB).setup("validate")
    with pytest.raises(ValueError, match="1 tokens; there is nothing to learn"):
        module(nanogpt(tmp_path / "one.bin", [[1]]), vocab_size=VOCAB).prepare_data()
    with pytest.raises(ValueError, match=r"seq_len=0 must be.*; .*|packing='tight'"):
        module(path, seq_len=0, packing="tight")


@pytest.mark.parametrize(
    "packing", [{"packing": "best_fit"}, {"mask_documents": True}, {"packing": "pad"}, {}]
)
def test_shards_are_read_one_behind_the_other(tmp_path, documents, packing) -> None:
    options = {"vocab_size": VOCAB, "eos_id": EOS, "micro_batch_size": 5, **packing}
    nanogpt(tmp_path / "shard_1.bin", documents[:25])
    ours(tmp_path / "shard_2", documents[25:31])
    nanogpt(tmp_path / "shard_3.bin", documents[31:])
    shards = [tmp_path / name for name in ("shard_1.bin", "shard_2", "shard_3.bin")]
    data = module(tmp_path / "shard_*", **options)
    data.prepare_data()
    data.setup("fit")

    def rows_of(one: TokenDataModule) -> list[tuple]:
        one.setup("fit")
        loader = one._loader("train", 1)
        return [tuple((k, tuple(v[0].tolist())) for k, v in batch.items()) for batch in loader]

    expected = [row for shard in shards for row in rows_of(module(shard, **options))]
    assert rows_of(data) == expected
    shuffled = [
        tuple((key, tuple(batch[key][row].tolist())) for key in batch)
        for batch in data.train_dataloader()
        for row in range(5)
    ]
    padding = [row for row in shuffled if set(dict(row)["shift_labels"]) == {-100}]
    assert sorted(row for row in shuffled if row not in padding) == sorted(expected)
    assert data.fingerprint != module(tmp_path / "shard_[12]*", **options).fingerprint

    store = data.train_store
    assert [document.tolist() for document in store] == documents
    stream = list(chain.from_iterable(documents))
    assert store.tokens(0, store.num_tokens).tolist() == stream
    border = len(list(chain.from_iterable(documents[:25])))
    assert store.tokens(border - 2, border + 2).tolist() == stream[border - 2 : border + 2]
    assert store.tokens(3, 3).tolist() == []
    store.verify()
    rows = data._rows_of("train")
    found = [rows.documents(index) for index in range(len(rows))]
    assert set(chain.from_iterable(found)) == set(range(len(documents)))
    assert pickle.loads(pickle.dumps(rows))[len(rows) - 1]["input_ids"].tolist() == list(
        dict(expected[-1])["input_ids"]
    )


def test_patterns_without_a_match_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing_\*.bin: no .bin file or folder matches"):
        module(tmp_path / "nothing_*.bin", vocab_size=9)
    with pytest.raises(ValueError, match="an empty list of stores"):
        TokenDataModule(train_store=[], vocab_size=9)


def test_a_file_is_read_once_for_its_highest_id(tmp_path, documents, monkeypatch) -> None:
    import os

    from lightning_llm.data import id_check

    path = nanogpt(tmp_path / "train.bin", documents)
    monkeypatch.setattr("lightning_llm.data.cache._SETTLED_NS", 0)
    module(path, vocab_size=VOCAB).prepare_data()
    monkeypatch.setattr(id_check, "in_chunks", lambda store: pytest.fail("read again"))
    module(path, vocab_size=VOCAB).prepare_data()
    monkeypatch.undo()
    nanogpt(path, [[60, EOS], *documents])
    os.utime(path)
    with pytest.raises(ValueError, match="id 60 at position 0"):
        module(path, vocab_size=VOCAB).prepare_data()
