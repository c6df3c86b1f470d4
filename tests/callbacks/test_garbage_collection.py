"""GarbageCollection takes the collector over and gives it back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from foreign import Bigram, loader, make_rows, trainer

from lightning_llm.callbacks import GarbageCollection


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    if enabled:
        gc.enable()


class Watched(Bigram):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0


def test_all_collections_are_at_the_chosen_steps() -> None:
    steps = []
    module = Watched()

    def watch(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            steps.append((module.trainer.global_step, info["generation"]))

    run = trainer(callbacks=[GarbageCollection(every_n_steps=2)], accumulate_grad_batches=2)
    module.on_train_start = lambda: gc.callbacks.append(watch)
    module.on_train_epoch_end = lambda: gc.callbacks.remove(watch)
    run.fit(module, loader(make_rows(10)))
    assert steps == [(2, 1), (4, 1)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_an_exception_gives_the_collector_back() -> None:
    class Fails(Watched):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        trainer(callbacks=[GarbageCollection()]).fit(Fails(), loader(make_rows(1)))
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    trainer(callbacks=[GarbageCollection()]).fit(Watched(), loader(make_rows(1)))
    assert not gc.isenabled()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="every_n_steps=0 must be at least 1"):
        GarbageCollection(every_n_steps=0)
