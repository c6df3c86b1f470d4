"""The length of a run, known at its first batch, is the number of steps it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset

from lightning_llm.errors import InvalidValueError
from lightning_llm.module import CausalLM
from lightning_llm.optim import AdamW, WarmupCosine

# A step that frees its gradients is what Lightning speaks of here.
pytestmark = pytest.mark.filterwarnings("ignore:When using .*accumulate_grad_batches")
CONFIG = {"n_layers": 1, "dim": 8, "n_heads": 1, "vocab_size": 11, "max_seq_len": 8}
ROWS, LENGTH = 10, 8


def rows() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(11, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row[:-1], "shift_labels": row[1:]} for row in ids]


def run(max_tokens: int | None = None, **options: Any) -> tuple[list[float], int, int]:
    """Return the rate of each step and after the last, the steps taken, the horizon."""
    rates: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module = CausalLM(
        CONFIG,
        max_tokens=max_tokens,
        optimizer=partial(AdamW, lr=1.0e-3),
        lr_scheduler=partial(WarmupCosine, warmup_steps=2, min_lr_ratio=0.0),
    )
    data = options.pop("data", None) or rows()
    callbacks = [*options.pop("callbacks", []), Rates()]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, DataLoader(data, batch_size=1))
    rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    [config] = trainer.lr_scheduler_configs
    return rates, trainer.global_step, config.scheduler.total_steps


def schedule(**factors: int) -> list[L.Callback]:
    factors_by_epoch = {int(epoch.removeprefix("epoch")): n for epoch, n in factors.items()}
    return [GradientAccumulationScheduler(factors_by_epoch)]


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2, "max_steps": 1000},
        {"max_epochs": 1000, "max_steps": 7},
        {"max_epochs": 2, "max_tokens": 10_000},
        {"max_epochs": 1, "max_steps": 100, "accumulate_grad_batches": 4},  # the last window: 2
        {"max_epochs": 3, "callbacks": schedule(epoch0=8, epoch1=1)},
        {"max_epochs": 3, "callbacks": schedule(epoch0=1, epoch2=4)},
        {"max_epochs": 3, "limit_train_batches": 3, "callbacks": schedule(epoch1=2)},
        {"max_epochs": -1, "max_tokens": 200, "callbacks": schedule(epoch0=1, epoch1=4)},
        {"max_epochs": -1, "max_tokens": 328, "accumulate_grad_batches": 4},
        {"max_epochs": -1, "max_steps": 12, "callbacks": schedule(epoch0=2, epoch1=5)},
        {"max_epochs": 2, "overfit_batches": 4},
    ],
)
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_the_schedule_ends_with_the_run(options: dict[str, Any]) -> None:
    rates, steps, horizon = run(**options)
    assert len(rates) == steps + 1
    assert steps == horizon
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    # The closed formula: 2 steps of warm-up, then half a cosine.
    expected = torch.arange(steps - 1, dtype=torch.float64) / (steps - 2)
    cosine = 1e-3 * 0.5 * (1 + torch.cos(torch.pi * expected))
    assert rates[2:] == pytest.approx(cosine.tolist(), abs=1e-9)


def test_tokens_are_reached_in_no_more_steps_than_needed() -> None:
    """10 micro-batches of 8 tokens in epoch 0, one a step; then 4 a step, the last 2 a step."""
    for tokens, steps in ((8, 1), (80, 10), (81, 11), (112, 11), (113, 12), (160, 13), (161, 14)):
        _, taken, _ = run(max_tokens=tokens, max_epochs=-1, callbacks=schedule(epoch0=1, epoch1=4))
        assert taken == steps, tokens


def test_a_time_is_no_number_of_steps() -> None:
    with pytest.warns(UserWarning, match="planned for 4 steps; max_time may end the run before"):
        run(max_steps=4, max_epochs=-1, max_time="00:01:00:00")


class Endless(IterableDataset[dict[str, torch.Tensor]]):
    """Rows whose number nobody knows beforehand."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(rows())


def test_epochs_of_unknown_length_may_end_a_schedule_early() -> None:
    with pytest.warns(UserWarning, match=r"planned for 50 steps; max_epochs=2 may end the run"):
        run(data=Endless(), max_epochs=2, max_steps=50)
    with pytest.raises(InvalidValueError, match=r"max_epochs \(where the dataloader has a length"):
        run(data=Endless(), max_epochs=2)


def test_tokens_of_batches_that_differ_are_no_plan() -> None:
    ragged = [{name: row[:size] for name, row in rows()[0].items()} for size in (2, 8, 8, 4)]
    with pytest.warns(UserWarning, match=r"max_tokens=40 .* first batch of 2 tokens, .* one of 8:"):
        run(data=ragged, max_tokens=40, max_epochs=-1)
