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


class OnPairs(L.LightningModule):
    """What a tutorial shows: (x, y) batches, and a step that logs its loss and returns nothing."""

    def __init__(
        self, name: str = "val_loss", returns: str | None = None, ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.name, self.returns = name, returns
        self.criterion = torch.nn.CrossEntropyLoss(ignore_index=ignore_index)
        self.table = torch.nn.Embedding(VOCAB, VOCAB)
        torch.nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(5))

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch.values() if isinstance(batch, dict) else batch
        return self.criterion(self.table(x).flatten(0, -2), y.flatten().long())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if self.name:
            self.log_dict({self.name: loss, "other": 3.0})
        x = batch[0] if isinstance(batch, list | tuple) else batch["x"]
        return {
            None: None,
            "loss": {"loss": loss},
            "tensor": loss,
            "logits": {"logits": self.table(x)},
        }[self.returns]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch).item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def as_pairs(rows: list[dict[str, torch.Tensor]], ignore_index: int = -100) -> list[Any]:
    """The same rows as (x, y), with another label for what does not count."""
    return [
        (row["input_ids"], row["shift_labels"].masked_fill(row["shift_labels"] < 0, ignore_index))
        for row in rows
    ]


@pytest.mark.parametrize("returns", [None, "loss", "tensor", "logits"])
@pytest.mark.parametrize("ignore_index", [-100, 12])
def test_pairs_give_the_brute_force_value(returns: str | None, ignore_index: int) -> None:
    rows = make_rows(7)
    for row in rows:  # a label that is ignored occurs nowhere else
        row["shift_labels"][row["shift_labels"] == 12] = 0
    module = OnPairs(returns=returns, ignore_index=ignore_index)
    pairs = as_pairs(rows, ignore_index)
    for given in (pairs, [{"x": x, "targets": y} for x, y in pairs]):
        for batch_size in (1, 3):
            value = validated(module, given, batch_size)["val_perplexity"]
            assert value == pytest.approx(perplexity(module, rows), rel=2e-6)
    assert "log" not in vars(module)  # the module is as it was


@pytest.mark.parametrize("name", ["val_loss", "val/loss", "valid_loss", "validation_loss"])
def test_usual_names_of_the_logged_loss(name: str) -> None:
    rows, module = make_rows(5), OnPairs(name)
    expected = perplexity(module, rows)
    monitor = PerplexityMonitor()
    got = validated(module, as_pairs(rows), 2, monitor=monitor)
    assert got["val_perplexity"] == pytest.approx(expected, rel=2e-6)
    assert got["other"] == 3.0  # what it logs is logged
    tester = trainer(callbacks=[monitor])
    (tested,) = tester.test(module, loader(as_pairs(rows), 2), verbose=False)
    assert tested["test_perplexity"] == pytest.approx(expected, rel=2e-6)


def test_class_labels_are_not_shifted() -> None:
    """``labels`` of one class a row, as in image classification."""

    class Classes(OnPairs):
        def loss(self, batch: Any) -> torch.Tensor:
            return self.criterion(self.table(batch["x"]), batch["labels"])

    module = Classes()
    rows = [{"x": torch.tensor(i % VOCAB), "labels": torch.tensor(i % 3)} for i in range(7)]
    table = module.table.weight.detach().double().log_softmax(-1)
    nll = [-table[row["x"], row["labels"]].item() for row in rows]
    value = validated(module, rows, 2)["val_perplexity"]
    assert value == pytest.approx(math.exp(sum(nll) / len(nll)), rel=2e-6)


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`:UserWarning")
@pytest.mark.parametrize("missing", ["loss", "targets", "integers", "tensors"])
def test_a_module_that_says_nothing_goes_on_with_one_warning(missing: str) -> None:
    class Foreign(OnPairs):
        def loss(self, batch: Any) -> torch.Tensor:
            if missing in ("loss", "targets"):
                return super().loss(batch if missing == "loss" else (batch["x"], batch["z"]))
            return self.table.weight.square().sum()

    rows = as_pairs(make_rows(4))
    module = Foreign("" if missing == "loss" else "val_loss")
    given: list[Any] = {
        "loss": rows,
        "targets": [{"x": x, "z": y} for x, y in rows],
        "integers": [(x, y.float()) for x, y in rows],
        "tensors": [(i, "text") for i in range(4)],
    }[missing]
    fitted = trainer(callbacks=[PerplexityMonitor()], max_epochs=2, num_sanity_val_steps=2)
    with pytest.warns(UserWarning, match="logs no perplexity") as heard:
        fitted.fit(module, loader(given, 2), loader(given, 2))
    said = [str(w.message) for w in heard if "PerplexityMonitor" in str(w.message)]
    assert len(said) == 1
    assert "Return from validation_step one of: {'nll_sum'" in said[0]
    assert fitted.global_step == 4
    assert "val_perplexity" not in fitted.callback_metrics


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"reduction": "sum"}, {"weight": torch.ones(VOCAB)}]
)
def test_a_loss_that_is_no_mean_likelihood_is_not_taken_for_one(options: dict[str, Any]) -> None:
    module = OnPairs()
    module.criterion = torch.nn.CrossEntropyLoss(**options)
    with pytest.warns(UserWarning, match="the mean loss without label smoothing"):
        assert "val_perplexity" not in validated(module, as_pairs(make_rows(3)), 2)
    module.returns = "logits"
    rows = make_rows(3)
    value = validated(module, as_pairs(rows), 2)["val_perplexity"]
    assert value == pytest.approx(perplexity(module, rows), rel=2e-6)


def test_a_dataloader_of_another_kind_is_left_out() -> None:
    """Of two, the second has no targets: the first keeps its value."""

    class Two(OnPairs):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if dataloader_idx == 0:
                self.log("val_loss", self.loss(batch), add_dataloader_idx=False)

    rows, module = make_rows(5), Two()
    loaders = [loader(as_pairs(rows), 2), loader([torch.zeros(2)] * 3, 1)]
    with pytest.warns(UserWarning, match="PerplexityMonitor logs no perplexity"):
        results = trainer(callbacks=[PerplexityMonitor()]).validate(module, loaders, verbose=False)
    value = results[0]["val_perplexity/dataloader_idx_0"]
    assert value == pytest.approx(perplexity(module, rows), rel=2e-6)
    assert "val_perplexity/dataloader_idx_1" not in results[1]


def test_two_monitors_and_an_error_leave_the_module_as_it_was() -> None:
    class Breaks(OnPairs):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == 1:
                raise RuntimeError("broken")

    rows, module = as_pairs(make_rows(4)), Breaks()
    monitors = [PerplexityMonitor(), PerplexityMonitor(torch.ones(VOCAB))]
    with pytest.raises(RuntimeError, match="broken"):
        trainer(callbacks=monitors).validate(module, loader(rows, 2), verbose=False)
    assert "log" not in vars(module)


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
