"""SpeedMonitor on a foreign module, with a clock that only the test moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import LENGTH, Bigram, HostReads, loader, make_rows, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import SpeedMonitor

STEP, FETCH, VALIDATION, CHECKPOINT, WARMUP = 2.0, 0.5, 1000.0, 500.0, 300.0


class Clock:
    """Stands in for ``time``; every read gives the moment the run has reached."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("lightning_llm.callbacks._stopwatch.time", clock)
    return clock


class Timed(Bigram):
    """Each part of the run takes a time known beforehand."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.now += WARMUP if self.trainer.global_step == 0 else STEP
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.clock.now += VALIDATION
        return super().validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        self.clock.now += CHECKPOINT


class Rows(torch.utils.data.Dataset[Any]):
    """Rows that take a while to fetch."""

    def __init__(self, rows: list[Any], clock: Clock) -> None:
        self.rows, self.clock = rows, clock

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.clock.now += FETCH
        return self.rows[index]


class Recorder(Callback):
    """What was logged at each log point."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if found and found != next(reversed(self.values.values()), None):
            self.values[trainer.global_step] = found


def tokens_of(rows: list[Any]) -> int:
    return sum(int((row["shift_labels"] != -100).sum()) for row in rows)


def fit(module: Bigram, rows: Any, monitor: SpeedMonitor, **options: Any) -> Recorder:
    recorder = Recorder()
    settings = {"log_every_n_steps": 1, "callbacks": [monitor, recorder]} | options
    trainer(**settings).fit(module, loader(rows))
    return recorder


def test_tokens_and_seconds_of_each_step(clock: Clock) -> None:
    rows = make_rows(4)
    values = fit(Timed(clock), Rows(rows, clock), SpeedMonitor(window=1)).values
    assert sorted(values) == [1, 2, 3, 4]
    for step in (2, 3, 4):
        found = values[step]
        assert found["tokens_per_second"] == tokens_of(rows[step - 1 : step]) / (STEP + FETCH)
        assert found["tokens_seen"] == tokens_of(rows[:step])
        assert found["step_seconds"] == STEP + FETCH
        assert found["data_wait_fraction"] == pytest.approx(FETCH / (STEP + FETCH))
    # There is nothing but the first step yet: better than no number.
    assert values[1]["tokens_per_second"] == tokens_of(rows[:1]) / WARMUP


def test_the_window_slides_over_optimizer_steps(clock: Clock) -> None:
    rows = make_rows(12)
    seconds = STEP + FETCH
    values = fit(Timed(clock), Rows(rows, clock), SpeedMonitor(window=3)).values
    assert values[3]["tokens_per_second"] == pytest.approx(tokens_of(rows[1:3]) / 2 / seconds)
    assert values[9]["tokens_per_second"] == pytest.approx(tokens_of(rows[6:9]) / 3 / seconds)

    clock.now = 0.0
    sparse = fit(
        Timed(clock), Rows(rows, clock), SpeedMonitor(window=3), log_every_n_steps=4
    ).values
    assert sorted(sparse) == [4, 8, 12]
    assert sparse[4]["tokens_per_second"] == pytest.approx(tokens_of(rows[1:4]) / 3 / seconds)
    assert sparse[12]["tokens_per_second"] == pytest.approx(tokens_of(rows[8:]) / 4 / seconds)


def test_validation_and_checkpoints_are_left_out(clock: Clock, tmp_path: Path) -> None:
    rows = make_rows(6)
    recorder = Recorder()
    run = trainer(
        log_every_n_steps=3,
        val_check_interval=1,
        num_sanity_val_steps=2,
        enable_checkpointing=True,
        callbacks=[
            SpeedMonitor(),
            recorder,
            ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1),
        ],
    )
    run.fit(Timed(clock), loader(Rows(rows, clock)), loader(make_rows(2)))
    assert clock.now > 6 * (VALIDATION + CHECKPOINT)
    # After a break the clock goes on with the batch at hand: its fetch is not seen.
    assert recorder.values[6]["step_seconds"] == STEP
    assert recorder.values[6]["tokens_per_second"] == tokens_of(rows[1:]) / (5 * STEP)


def test_accumulated_batches_are_one_step(clock: Clock) -> None:
    rows = make_rows(6)
    values = fit(
        Timed(clock), Rows(rows, clock), SpeedMonitor(window=1), accumulate_grad_batches=2
    ).values
    assert sorted(values) == [1, 2, 3]
    assert values[3]["step_seconds"] == 2 * (STEP + FETCH)
    assert values[3]["tokens_per_second"] == tokens_of(rows[4:]) / (2 * (STEP + FETCH))
    assert values[3]["tokens_seen"] == tokens_of(rows)


class TestModelFlops:
    rows = make_rows(3)
    speed = tokens_of(rows[2:]) / (STEP + FETCH)

    def last(self, module: Bigram, monitor: SpeedMonitor) -> dict[str, float]:
        assert isinstance(module, Timed)
        return fit(module, Rows(self.rows, module.clock), monitor).values[3]

    @pytest.mark.parametrize("owner", ["module", "model", "argument"])
    def test_from_a_method(self, clock: Clock, owner: str) -> None:
        def flops_per_token(seq_len: int, *, causal: bool = False) -> float:
            assert seq_len == LENGTH
            return 60.0 if causal else 90.0

        module = Timed(clock)
        monitor = SpeedMonitor(1, peak_flops=1e3)
        if owner == "module":
            module.flops_per_token = lambda seq_len, **options: flops_per_token(seq_len, **options)
        elif owner == "model":
            module.model = torch.nn.Linear(1, 1, bias=False)
            module.model.flops_per_token = flops_per_token
        else:
            monitor = SpeedMonitor(1, peak_flops=1e3, flops_per_token=flops_per_token)
        found = self.last(module, monitor)
        assert found["mfu"] == pytest.approx(self.speed * 90.0 / 1e3)
        assert found["mfu_causal"] == pytest.approx(self.speed * 60.0 / 1e3)

    @pytest.mark.parametrize("source", [90.0, lambda seq_len: 15.0 * seq_len])
    def test_without_a_causal_count(self, clock: Clock, source: Any) -> None:
        monitor = SpeedMonitor(1, peak_flops=1e3, flops_per_token=source)
        found = self.last(Timed(clock), monitor)
        assert found["mfu"] == pytest.approx(self.speed * 90.0 / 1e3)
        assert "mfu_causal" not in found

    def test_each_length_has_its_own(self, clock: Clock) -> None:
        rows = make_rows(3)
        rows[2] = {name: value[:4] for name, value in rows[2].items()}
        monitor = SpeedMonitor(peak_flops=1e3, flops_per_token=lambda seq_len: 10.0 * seq_len)
        found = fit(Timed(clock), Rows(rows, clock), monitor).values[3]
        flops = 10.0 * (6 * tokens_of(rows[1:2]) + 4 * tokens_of(rows[2:]))
        assert found["mfu"] == pytest.approx(flops / (2 * (STEP + FETCH)) / 1e3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"peak_flops": 1e3}, "flops_per_token= is not given"),
            ({"flops_per_token": 1.0}, None),  # no peak of a CPU is known: no news
        ],
    )
    def test_is_absent_where_unknown(
        self, clock: Clock, options: Any, message: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = self.last(Timed(clock), SpeedMonitor(**options))
        assert "tokens_per_second" in found
        assert not {"mfu", "mfu_causal"} & set(found)
        assert caplog.text.count("SpeedMonitor") == (message is not None)
        assert message is None or message in caplog.text


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    rows = make_rows(8)
    checkpoint = tmp_path / "at3.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(checkpoint)

    # The log point is later than the checkpoint: what it holds was counted on the way.
    monitor = SpeedMonitor()
    run = trainer(max_steps=3, log_every_n_steps=10, callbacks=[monitor, Save()])
    run.fit(Bigram(), loader(rows))
    assert monitor.tokens_seen == tokens_of(rows[:3])

    again = SpeedMonitor()
    run = trainer(max_steps=5, log_every_n_steps=5, callbacks=[again])
    with pytest.warns(UserWarning, match="resuming from a checkpoint that ended before"):
        run.fit(Bigram(), loader(rows), ckpt_path=checkpoint)
    # Lightning starts the epoch again with a loader that has no state.
    assert again.tokens_seen == tokens_of(rows[:3]) + tokens_of(rows[:2])
    assert run.callback_metrics["tokens_seen"] == again.tokens_seen


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        ({"input_ids": torch.ones(2, 5)}, 10),
        ({"input_ids": torch.ones(1, 3), "labels": torch.tensor([[1, 2, -100]])}, 2),
        ({"input_ids": torch.ones(1, 3), "shift_labels": torch.tensor([[1, -100, -100]])}, 1),
        (
            {
                "input_ids": torch.ones(1, 3),
                "labels": torch.tensor([[-100, 2, -100]]),
                "attention_mask": torch.tensor([[1, 1, 0]]),
            },
            2,
        ),
        (
            {
                "input_ids": torch.ones(1, 4),
                "shift_labels": torch.tensor([[-100, 2, 3, -100]]),
                "document_ids": torch.tensor([[0, 0, 1, -1]]),
            },
            3,
        ),
        ({"pixels": torch.ones(3)}, 0),
        (torch.ones(3), 0),
    ],
)
def test_what_is_counted(batch: Any, tokens: int) -> None:
    from lightning_llm.callbacks._token_count import TokenCount

    count = TokenCount()
    count.add(batch)
    count.add(batch)
    assert count.work(None).tolist() == [2 * tokens, 0, 0]
    count.clear()
    assert count.work(None).tolist() == [0, 0, 0]


def test_the_logger_has_one_row_per_log_point(tmp_path: Path) -> None:
    class Logs(Bigram):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            return loss

    fit(Logs(), make_rows(6), SpeedMonitor(), log_every_n_steps=2, logger=CSVLogger(tmp_path))
    table = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    names = table[0].split(",")
    rows = [dict(zip(names, line.split(","))) for line in table[1:]]
    assert [row["step"] for row in rows] == ["1", "3", "5"]
    assert all(row["train_loss"] and row["tokens_per_second"] for row in rows)


def test_the_progress_bar_shows_the_speed() -> None:
    run = trainer(log_every_n_steps=2, callbacks=[SpeedMonitor()])
    run.fit(Bigram(), loader(make_rows(4)))
    assert run.progress_bar_metrics["tokens_per_second"] > 0


def test_no_batch_between_log_points_makes_the_host_wait() -> None:
    def reads(batches: int) -> int:
        monitor = SpeedMonitor(peak_flops=1.0, flops_per_token=1.0)
        run = trainer(log_every_n_steps=2, callbacks=[monitor], max_steps=2)
        run.fit(Bigram(), loader(make_rows(2)))  # the bar has a speed to show from here on
        run.fit_loop.epoch_loop.max_steps = 2 + batches
        run.fit_loop.max_epochs = 5
        run.log_every_n_steps = 10**6
        with HostReads() as counted:
            run.fit(Bigram(), loader(make_rows(batches)))
        assert run.global_step == 2 + batches
        return counted.count

    assert reads(2) == reads(12)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": 0}, "window=0 must be"), ({"peak_flops": -1.0}, "peak_flops=-1.0 must be")],
)
def test_bad_arguments_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeedMonitor(**options)
