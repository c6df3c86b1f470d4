"""BLEUMonitor on several processes: equal to one process, however the data is spread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from ranks import run_on_ranks
from test_bleu_monitor import expected
from translating import Translator, corpus_loader, make_corpus

from lightning_llm.callbacks import BLEUMonitor

pytestmark = pytest.mark.distributed

WORLD = 2


class Sharded(Translator):
    """Every call needs all ranks, once per prompt, as layers spread over ranks do."""

    def configure_model(self) -> None: ...

    def generate(self, prompts: list[str], **options: Any) -> list[str]:
        for prompt in prompts:
            size = torch.tensor([len(prompt)])
            torch.distributed.all_reduce(size)
            assert size == WORLD * len(prompt)
        return super().generate(prompts, **options)


class Mesh(ModelParallelStrategy):
    """Two ranks that share the layers (and read the same data), or the data."""

    def __init__(self, data_parallel_size: int) -> None:
        super().__init__(data_parallel_size, WORLD // data_parallel_size)

    def configure_optimizers(self) -> None: ...


def validate(
    module: Translator, loader: Any, monitor: BLEUMonitor | None = None, strategy: Any = "ddp"
) -> dict[str, Any]:
    run = trainer(
        strategy=strategy,
        devices=WORLD,
        callbacks=[monitor or BLEUMonitor()],
        use_distributed_sampler=not isinstance(loader.sampler, range),
    )
    run.validate(module, loader, verbose=False)
    found = {name: value.item() for name, value in run.callback_metrics.items()}
    return found | {"generated": sum(map(len, module.calls))}


def cases() -> dict[str, Any]:
    """All cases, in one start of the processes."""
    found: dict[str, Any] = {}
    for returns in ("nothing", "both"):
        for size in (1, 2, 3):
            loader = corpus_loader(make_corpus(5), size)
            found[f"repeated-{returns}-{size}"] = validate(Translator(returns), loader)
    rank = int(os.environ["RANK"])

    def uneven(rows: list[Any]) -> Any:
        return corpus_loader(rows, 1, sampler=range(rank, len(rows), WORLD))

    found["uneven"] = validate(Translator(), uneven(make_corpus(5)))
    found["one rank has nothing"] = validate(
        Translator(), uneven(make_corpus(5)), BLEUMonitor(max_samples=1)
    )
    found["first three"] = validate(
        Translator(), corpus_loader(make_corpus(8), 2), BLEUMonitor(max_samples=3)
    )
    found["sharded"] = validate(Sharded(), uneven(make_corpus(5)), strategy=Mesh(WORLD))
    found["same data"] = validate(Sharded(), corpus_loader(make_corpus(5), 2), strategy=Mesh(1))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> list[dict[str, Any]]:
    directory: Path = tmp_path_factory.mktemp("ranks")
    return run_on_ranks(cases, WORLD, directory)


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        *((f"repeated-{returns}-{n}", 5) for returns in ("nothing", "both") for n in (1, 2, 3)),
        ("uneven", 5),
        ("one rank has nothing", 1),
        ("first three", 3),
        ("sharded", 5),
        ("same data", 5),
    ],
)
def test_scores_are_those_of_one_process(found: Any, name: str, samples: int) -> None:
    wanted = expected(make_corpus(samples))
    for rank in found:
        assert {key: rank[name][key] for key in wanted} == pytest.approx(wanted, abs=1e-9)


def test_the_repetition_would_have_changed_the_score() -> None:
    rows = make_corpus(5)
    assert expected([*rows, rows[0]])["val_bleu"] != pytest.approx(expected(rows)["val_bleu"])


def test_who_generates_what(found: Any) -> None:
    assert [rank["repeated-nothing-2"]["generated"] for rank in found] == [3, 2]
    assert [rank["first three"]["generated"] for rank in found] == [2, 1]
    assert [rank["sharded"]["generated"] for rank in found] == [5, 5]  # all, together
