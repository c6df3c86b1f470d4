"""The data module: from files to batches, alone and under the Trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_llm import TextDataModule
from lightning_llm.data import TokenizerSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def books(tmp_path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(8):
        text = "".join(f"Line {j} of book {i}.\n" for j in range(10 + i))
        (folder / f"{i}.txt").write_text(text)
    return folder


def module(books: Path, **options) -> TextDataModule:
    defaults = {"tokenizer": TokenizerSpec("byte"), "seq_len": 16, "micro_batch_size": 4}
    return TextDataModule(train_files=[f"{books}/*.txt"], **(defaults | options))


def text_of(books: Path) -> list[str]:
    return [file.read_text() for file in sorted(books.iterdir())]


def targets(loader) -> Counter:
    return Counter(
        token
        for batch in loader
        for token in batch["shift_labels"][batch["shift_labels"] != -100].tolist()
    )


def test_files_alone_are_enough(books):
    data = TextDataModule(train_files=str(books / "0.txt"))
    assert 257 <= data.vocab_size <= 32_000  # straight after construction
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (8, 512)
    assert list(data.val_dataloader()) == []
    assert data.token_byte_lengths.shape == (data.vocab_size,)


def test_every_token_is_a_target_once(books):
    data = module(books)
    expected = Counter(token for text in text_of(books) for token in [*text.encode(), 256])
    expected[text_of(books)[0].encode()[0]] -= 1  # the first token of the stream
    assert targets(data.train_dataloader()) == expected
    assert data.train_store.num_tokens == sum(expected.values()) + 1


@pytest.mark.parametrize(
    ("options", "masked"),
    [
        ({"packing": "concat"}, False),
        ({"packing": "concat", "mask_documents": True}, True),
        ({"packing": "best_fit"}, True),
        ({"packing": "pad"}, False),
    ],
)
def test_packings(books, options, masked):
    data = module(books, **options)
    batch = next(iter(data.train_dataloader()))
    assert ("document_ids" in batch) == ("position_ids" in batch) == masked
    assert all(t.shape == (4, 16) and t.dtype == torch.int64 for t in batch.values())
    if options["packing"] != "concat" or masked:
        # the first token of each document is no target
        assert sum(targets(data.train_dataloader()).values()) == data.train_store.num_tokens - 8


def test_validation_test_and_prediction_data(books, tmp_path):
    for name in ("val", "test"):
        (tmp_path / f"{name}.txt").write_text(name * 30)
    data = module(books, val_files=tmp_path / "val.txt", val_micro_batch_size=2)
    assert next(iter(data.val_dataloader()))["input_ids"].shape == (2, 16)
    assert bytes(data.val_store[0][:-1].tolist()) == b"val" * 30
    assert targets(data.predict_dataloader()) == targets(data.val_dataloader())
    with pytest.raises(ValueError, match="no test data: give test_files"):
        data.test_dataloader()
    data = module(books, test_files=tmp_path / "test.txt", val_fraction=0.2)
    assert data.train_dataloader() is not None
    assert data.test_store.num_tokens == 121
    assert data.val_store.num_tokens > 0
    assert targets(data.predict_dataloader()) == targets(data.test_dataloader())
    with pytest.raises(ValueError, match="nothing to predict"):
        module(books).predict_dataloader()


def test_one_file_still_gives_validation_text(books):
    text = (books / "0.txt").read_text()
    data = TextDataModule(
        train_files=books / "0.txt", tokenizer={"algorithm": "byte"}, val_fraction=0.1
    )
    data.setup()
    parts = [data.tokenizer.decode(s[0][:-1]) for s in (data.train_store, data.val_store)]
    assert parts == [text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]]


def test_fingerprints_follow_rows_and_order(books):
    made = [
        module(books),
        module(books, seed=1),
        module(books, seq_len=8),
        module(books, packing="pad"),
        module(books, tokenizer=TokenizerSpec("char")),
    ]
    assert len({data.fingerprint for data in made}) == 5
    assert module(books, micro_batch_size=1, num_workers=2).fingerprint == made[0].fingerprint


def test_all_bad_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="no text: give train_files or dataset") as caught:
        TextDataModule(
            seq_len=0,
            micro_batch_size=0,
            num_workers=-1,
            packing="tight",
            errors="ignore",
            val_fraction=1.0,
            val_split="validation",
        )
    message = str(caught.value)
    for part in (
        "seq_len=0 must be at least 1",
        "micro_batch_size=0 must",
        "num_workers=-1 must be at least 0",
        "packing='tight' must be one of concat, best_fit, pad",
        "errors='ignore' must be one of strict, replace, skip",
        "val_fraction=1.0 must be at least 0 and below 1",
        "val_split='validation' is a split of dataset",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "x"}, "two sources of text"),
        ({"packing": "best_fit", "mask_documents": False}, "always keeps documents apart"),
        ({"val_files": "a", "val_split": "b", "dataset": "x"}, "val_files or val_split, not both"),
    ],
)
def test_arguments_that_exclude_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        TextDataModule(train_files="a.txt", **options)


def test_a_pattern_without_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        TextDataModule(train_files=f"{tmp_path}/nothing/*.txt")


def test_forms_of_the_tokenizer(books, tmp_path):
    module(books).tokenizer.save_pretrained(tmp_path / "tok")
    for form in (
        TokenizerSpec("byte"),
        {"algorithm": "byte"},
        tmp_path / "tok",
        str(tmp_path / "tok"),
        {"pretrained": str(tmp_path / "tok")},
    ):
        assert module(books, tokenizer=form).vocab_size == 257
    with pytest.raises(TypeError, match="tokenizer=3: expected a TokenizerSpec"):
        module(books, tokenizer=3)


def test_hyperparameters_are_plain_data(books):
    data = module(books, tokenizer=TokenizerSpec("char", special_tokens=["<|x|>"]))
    assert json.loads(json.dumps(dict(data.hparams))) == dict(data.hparams)
    again = TextDataModule(**data.hparams)
    assert again.fingerprint == data.fingerprint


def test_a_dataset_of_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"body": [f"row {i}" for i in range(20)]}
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict(rows), "held_out": datasets.Dataset.from_dict(rows)}
    ).save_to_disk(tmp_path / "rows")
    options = {
        "dataset": tmp_path / "rows",
        "text_field": "body",
        "tokenizer": TokenizerSpec("byte"),
        "seq_len": 8,
    }
    data = TextDataModule(**options, val_split="held_out", max_documents=5)
    data.setup()
    assert [bytes(d[:-1].tolist()).decode() for d in data.train_store] == rows["body"][:5]
    assert len(data.val_store) == 20
    streamed = TextDataModule(**options, streaming=True)
    streamed.setup()
    assert len(streamed.train_store) == 20


class Bigram(pl.LightningModule):
    """A table of logits: the smallest language model."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, vocab_size)
        self.totals = {"train": 0, "val": 0, "test": 0}

    def step(self, batch, part):
        labels = batch["shift_labels"]
        self.totals[part] += int((labels != -100).sum())
        return torch.nn.functional.cross_entropy(
            self.table(batch["input_ids"]).flatten(0, 1), labels.flatten()
        )

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def predict_step(self, batch, batch_idx):
        return batch["input_ids"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options) -> pl.Trainer:
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    defaults = dict.fromkeys(quiet, False) | {"accelerator": "cpu", "num_sanity_val_steps": 0}
    return pl.Trainer(**(defaults | options))


def test_under_the_trainer(books, tmp_path):
    data = module(books, val_fraction=0.3, test_files=books / "0.txt")
    model = Bigram(data.vocab_size)
    run = trainer(max_epochs=2)
    run.fit(model, datamodule=data)
    assert model.totals["train"] == 2 * (data.train_store.num_tokens - 1)
    assert model.totals["val"] == 2 * (data.val_store.num_tokens - 1)
    run.test(model, datamodule=data)
    assert model.totals["test"] == data.test_store.num_tokens - 1
    assert len(run.predict(model, datamodule=data)) == len(data.predict_dataloader())
    run.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"]["seq_len"] == 16
    # Without validation data the validation step is not called, and nothing warns.
    model = Bigram(data.vocab_size)
    run = trainer(max_epochs=1, num_sanity_val_steps=2)
    run.fit(model, datamodule=module(books))
    assert model.totals["val"] == 0
    assert run.limit_val_batches == 1.0
    with pytest.raises(ValueError, match="no validation data"):
        run.validate(model, datamodule=module(books))


def test_overfitting_repeats_the_same_batches(books):
    class Seen(Bigram):
        batches = ()

        def training_step(self, batch, batch_idx):
            self.batches += (batch["input_ids"],)
            return super().training_step(batch, batch_idx)

    model = Seen(257)
    trainer(max_epochs=2, overfit_batches=2).fit(model, datamodule=module(books))
    assert len(model.batches) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.batches[:2], model.batches[2:]))


def test_a_checkpoint_of_other_data_is_refused(books, tmp_path):
    run = trainer(max_steps=2)
    run.fit(Bigram(257), datamodule=module(books))
    run.save_checkpoint(tmp_path / "c.ckpt")
    (books / "3.txt").write_text((books / "3.txt").read_text().replace("book 3", "Book 3"))
    with pytest.raises(ValueError, match="not what the checkpoint was trained on: store"):
        trainer(max_steps=4).fit(
            Bigram(257), datamodule=module(books), ckpt_path=tmp_path / "c.ckpt"
        )
    with pytest.warns(UserWarning, match="not what the checkpoint was trained on: store"):
        trainer(max_steps=4).fit(
            Bigram(257),
            datamodule=module(books, strict_resume=False),
            ckpt_path=tmp_path / "c.ckpt",
        )


RANKS = """
import json, os, sys
import lightning.pytorch as pl, torch
from lightning_llm import TextDataModule

class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": []}
    def record(self, batch, part):
        real = (batch["shift_labels"] != -100).any(1)
        self.seen[part].append(batch["input_ids"][real].tolist())
    def training_step(self, batch, batch_idx):
        self.record(batch, "train")
        return self.weight * 1.0
    def validation_step(self, batch, batch_idx):
        self.record(batch, "val")
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

if __name__ == "__main__":
    folder, devices = sys.argv[1], int(sys.argv[2])
    data = TextDataModule(
        train_files=folder + "/books/*.txt", val_files=folder + "/books/1.txt",
        tokenizer={"algorithm": "byte"}, seq_len=16, micro_batch_size=6 // devices,
        cache_dir=folder + "/shared",
    )
    model = Recorder()
    pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    ).fit(model, datamodule=data)
    with open(f"{folder}/{devices}-{os.environ.get('LOCAL_RANK', '0')}.json", "w") as stream:
        json.dump(model.seen, stream)
"""


@pytest.mark.distributed
def test_two_processes_under_ddp_see_each_sample_once_in_the_same_order(books, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    seen = {}
    for devices in (1, 2):
        subprocess.run(
            [sys.executable, str(script), str(tmp_path), str(devices)],
            check=True,
            timeout=120,
            capture_output=True,
        )
        paths = [tmp_path / f"{devices}-{rank}.json" for rank in range(devices)]
        ranks = [json.loads(path.read_text()) for path in paths]
        for part in ("train", "val"):
            assert len({len(rank[part]) for rank in ranks}) == 1  # equally many batches
            seen[part, devices] = [
                row
                for step in zip(*(rank[part] for rank in ranks))
                for batch in step
                for row in batch
            ]
    for part in ("train", "val"):
        assert seen[part, 1] == seen[part, 2]
    rows = Counter(map(tuple, seen["train", 1]))
    data = module(books)
    data.setup()
    assert sum(rows.values()) == 2 * -(-(data.train_store.num_tokens - 1) // 16)
    assert set(rows.values()) <= {2, 4, 6}  # twice each; some lines of the books are equal
    epochs = np.array_split(np.array(seen["train", 1], dtype=object), 2)
    assert epochs[0].tolist() != epochs[1].tolist()
