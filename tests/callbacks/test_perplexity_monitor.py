"""PerplexityMonitor on a foreign module, against a loop over single tokens."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from foreign import VOCAB, Bigram, HostReads, brute_force, loader, make_rows, perplexity, trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import IterableDataset

from lightning_llm.callbacks import PerplexityMonitor

RETURNS = ["sums", "numbers", "logits", "attribute", "loss", "tensor"]


def validated(module: L.LightningModule, rows: Any, batch_size: int, **options: Any) -> Any:
    monitor = options.pop("monitor", None) or PerplexityMonitor()
    loaders = loader(rows, batch_size)
    return trainer(callbacks=[monitor], **options).validate(module, loaders, verbose=False)[0]


@pytest.mark.parametrize("labels", ["shift_labels", "labels"])
@pytest.mark.parametrize("returns", RETURNS)
def test_every_source_gives_the_brute_force_value(returns: str, labels: str) -> None:
    rows = make_rows(7, labels=labels)
    module = Bigram(returns)
    expected = perplexity(module, rows)
    for batch_size in (1, 3, 7):
        value = validated(module, rows, batch_size)["val_perplexity"]
        assert value == pytest.approx(expected, rel=2e-6)


def test_the_logged_loss_would_have_been_wrong() -> None:
    """The data can tell a token average from an average of batch means."""
    rows = make_rows(7)
    result = validated(Bigram(), rows, 1)
    assert abs(math.exp(result["val_loss"]) / result["val_perplexity"] - 1) > 0.01


def test_one_changed_weight_shows() -> None:
    rows = make_rows(7)
    module = Bigram("logits")
    before = validated(module, rows, 3)["val_perplexity"]
    with torch.no_grad():
        module.table.weight[rows[0]["input_ids"][0], 0] += 0.05
    assert validated(module, rows, 3)["val_perplexity"] != pytest.approx(before, rel=2e-5)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    rows = make_rows(7)
    module = Bigram("half")
    with torch.no_grad():
        module.table.weight.copy_(module.table.weight.bfloat16())
    expected = perplexity(module, rows)
    assert validated(module, rows, 3)["val_perplexity"] == pytest.approx(expected, rel=2e-6)


def test_logits_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_llm.callbacks._likelihood._CHUNK_ELEMENTS", 4 * VOCAB)
    rows = make_rows(7)
    module = Bigram("logits")
    expected = perplexity(module, rows)
    assert validated(module, rows, 3)["val_perplexity"] == pytest.approx(expected, rel=2e-6)


def test_logits_without_the_last_position_fit_hugging_face_labels() -> None:
    class Cut(Bigram):
        def evaluate(self, batch: Any, name: str) -> Any:
            return {"logits": self.table(batch["input_ids"])[:, :-1]}

    rows = make_rows(5, labels="labels")
    module = Cut()
    value = validated(module, rows, 2)["val_perplexity"]
    assert value == pytest.approx(perplexity(module, rows), rel=2e-6)


def test_very_unlikely_targets_are_finite() -> None:
    class Sums(Bigram):
        def evaluate(self, batch: Any, name: str) -> Any:
            return {"nll_sum": torch.tensor(500.0), "num_tokens": 1}

    assert validated(Sums(), make_rows(2), 1)["val_perplexity"] == pytest.approx(math.exp(500))


def test_a_batch_without_targets_weighs_nothing() -> None:
    rows = make_rows(4)
    rows[2]["shift_labels"].fill_(-100)
    for returns in RETURNS:
        if returns == "numbers":
            continue
        module = Bigram(returns)
        expected = perplexity(module, rows)
        assert validated(module, rows, 1)["val_perplexity"] == pytest.approx(expected, rel=2e-6)


def test_no_targets_at_all_is_nan_and_said() -> None:
    rows = make_rows(2)
    for row in rows:
        row["shift_labels"].fill_(-100)
    with pytest.warns(UserWarning, match="val_perplexity is NaN: no batch had a target token"):
        assert math.isnan(validated(Bigram("logits"), rows, 1)["val_perplexity"])


@pytest.mark.parametrize("missing", ["outputs", "labels"])
def test_what_to_return_is_named(missing: str) -> None:
    class Unlabelled(Bigram):
        def evaluate(self, batch: Any, name: str) -> Any:
            return {"logits": self.table(batch["input_ids"])}

    rows = make_rows(2)
    module: Bigram = Bigram("nothing")
    if missing == "labels":
        module = Unlabelled()
        rows = [{"input_ids": row["input_ids"]} for row in rows]
    with pytest.raises(ValueError, match=r"Return from validation_step one of: .*nll_sum"):
        validated(module, rows, 1)


def test_logits_that_do_not_fit_the_labels_are_named() -> None:
    class Wrong(Bigram):
        def evaluate(self, batch: Any, name: str) -> Any:
            return {"logits": self.table(batch["input_ids"])[:, :3]}

    with pytest.raises(ValueError, match=r"logits of shape \(1, 3, 13\) .* \(1, 6\)"):
        validated(Wrong(), make_rows(1), 1)


def test_the_batch_and_the_outputs_are_left_alone() -> None:
    class Keeps(Bigram):
        def on_validation_batch_end(self, outputs: Any, batch: Any, *rest: Any) -> None:
            assert set(outputs) == {"loss", "logits"}
            assert set(batch) == {"input_ids", "shift_labels"}
            assert torch.equal(batch["shift_labels"], rows[rest[0]]["shift_labels"][None])

    rows = make_rows(3)
    validated(Keeps("logits"), rows, 1)


class TestBitsPerByte:
    lengths = torch.arange(VOCAB)  # id 0 is a special token of no bytes

    def expected(self, module: Bigram, rows: Any) -> float:
        targets = [int(t) for row in rows for t in row["shift_labels"] if t != -100]
        nll, _ = brute_force(module, rows)
        return nll / math.log(2) / sum(targets)

    @pytest.mark.parametrize("returns", RETURNS)
    def test_from_a_table(self, returns: str) -> None:
        rows, module = make_rows(7), Bigram(returns)
        monitor = PerplexityMonitor(self.lengths.numpy())
        value = validated(module, rows, 3, monitor=monitor)["val_bits_per_byte"]
        assert value == pytest.approx(self.expected(module, rows), rel=2e-6)

    def test_from_the_datamodule(self) -> None:
        rows, module = make_rows(7), Bigram()

        class Data(L.LightningDataModule):
            token_byte_lengths = self.lengths

            def test_dataloader(self) -> Any:
                return loader(rows, 2)

        run = trainer(callbacks=[PerplexityMonitor()])
        result = run.test(module, datamodule=Data(), verbose=False)[0]
        assert result["test_bits_per_byte"] == pytest.approx(self.expected(module, rows), rel=2e-6)
        assert result["test_perplexity"] == pytest.approx(perplexity(module, rows), rel=2e-6)

    def test_from_the_outputs(self) -> None:
        class Bytes(Bigram):
            def evaluate(self, batch: Any, name: str) -> Any:
                return super().evaluate(batch, name) | {"num_bytes": torch.tensor(10)}

        rows, module = make_rows(4), Bytes()
        value = validated(module, rows, 2)["val_bits_per_byte"]
        assert value == pytest.approx(brute_force(module, rows)[0] / math.log(2) / 20, rel=2e-6)

    def test_is_absent_without_a_table(self) -> None:
        assert "val_bits_per_byte" not in validated(Bigram(), make_rows(2), 1)

    def test_is_withheld_when_bytes_and_likelihood_are_of_different_targets(self) -> None:
        class Half(Bigram):
            def evaluate(self, batch: Any, name: str) -> Any:
                return {"nll_sum": torch.tensor(1.0), "num_tokens": 1}

        monitor = PerplexityMonitor(self.lengths)
        with pytest.warns(UserWarning, match="val_bits_per_byte is not logged: .* over 2 targets"):
            result = validated(Half(), make_rows(5)[1:2], 1, monitor=monitor)
        assert "val_bits_per_byte" not in result


def test_several_dataloaders_are_named_as_lightning_does(capsys: Any) -> None:
    sets = [make_rows(3, seed=1), make_rows(4, seed=2)]
    module = Bigram("logits")
    run = trainer(callbacks=[PerplexityMonitor()])
    results = run.validate(module, [loader(rows, 2) for rows in sets])
    printed = capsys.readouterr().out
    for index, rows in enumerate(sets):
        name = f"val_perplexity/dataloader_idx_{index}"
        assert set(results[index]) == {name, f"val_loss/dataloader_idx_{index}"}
        assert results[index][name] == pytest.approx(perplexity(module, rows), rel=2e-6)
        assert run.callback_metrics[name].item() == results[index][name]
        assert str(results[index][name])[:7] in printed


def test_an_empty_dataloader_among_several_is_left_out() -> None:
    rows = make_rows(3)
    module = Bigram("logits")
    loaders = [loader(rows, 2), loader([], 2), loader(rows[:2], 2)]
    run = trainer(callbacks=[PerplexityMonitor()])
    with pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"):
        run.validate(module, loaders, verbose=False)
    values = {k: v.item() for k, v in run.callback_metrics.items() if "perplexity" in k}
    assert values == {
        "val_perplexity/dataloader_idx_0": pytest.approx(perplexity(module, rows), rel=2e-6),
        "val_perplexity/dataloader_idx_2": pytest.approx(perplexity(module, rows[:2]), rel=2e-6),
    }


def test_a_dataset_without_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(rows)

    rows = make_rows(5)
    module = Bigram()
    expected = perplexity(module, rows)
    assert validated(module, Stream(), 2)["val_perplexity"] == pytest.approx(expected, rel=2e-6)


def test_every_validation_starts_anew_and_can_be_monitored(tmp_path: Any) -> None:
    rows, val_rows = make_rows(8), make_rows(3, seed=9)
    expected = []

    class Recorded(Bigram):
        def on_validation_epoch_start(self) -> None:
            if not self.trainer.sanity_checking:
                expected.append(perplexity(self, val_rows))

    checkpoint = ModelCheckpoint(tmp_path / "saved", monitor="val_perplexity", save_top_k=-1)
    run = trainer(
        max_epochs=3,
        num_sanity_val_steps=2,
        enable_checkpointing=True,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        callbacks=[PerplexityMonitor(), checkpoint, EarlyStopping("val_perplexity")],
    )
    run.fit(Recorded(), loader(rows, 2), loader(val_rows, 2))
    assert len(expected) == 3
    saved = sorted(value.item() for value in checkpoint.best_k_models.values())
    assert saved == pytest.approx(sorted(expected), rel=2e-6)
    table = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = table[0].split(",").index("val_perplexity")
    logged = [float(line.split(",")[column]) for line in table[1:] if line.split(",")[column]]
    assert logged == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("returns", ["sums", "logits", "loss"])
def test_no_batch_makes_the_host_wait(returns: str) -> None:
    class Quiet(Bigram):
        def log(self, *args: Any, **kwargs: Any) -> None:
            if args[0] != "val_loss":
                super().log(*args, **kwargs)

    def reads(batches: int) -> int:
        run = trainer(callbacks=[PerplexityMonitor(torch.ones(VOCAB))])
        with HostReads() as counted:
            run.validate(Quiet(returns), loader(make_rows(batches), 1), verbose=False)
        return counted.count

    few, many = reads(2), reads(12)
    assert few == many
