"""StartupBanner: what is on, what could be, and how large a step is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch import LightningDataModule

from lightning_llm.callbacks import StartupBanner
from lightning_llm.strategies import SingleDeviceStrategy


def banner(capsys: pytest.CaptureFixture[str], module: Any = None, **options: Any) -> str:
    data = options.pop("data", None) or loader(make_rows(8), batch_size=2)
    run = trainer(callbacks=[StartupBanner()], **options)
    run.fit(module or Bigram(), data)
    return capsys.readouterr().err.split("\nINFO")[0]


def test_model_step_and_run_of_a_foreign_module(capsys: pytest.CaptureFixture[str]) -> None:
    text = banner(capsys, accumulate_grad_batches=2, max_epochs=3)
    assert text.count("Bigram: 169 parameters on 1 x cpu") == 1
    assert "precision 32-true  compile off  strategy SingleDeviceStrategy\n" in text
    assert "step: 24 tokens (2 x 6, 2 micro-batches)  run: 6 steps, 144 tokens" in text
    assert "could be on: compile=True of lightning_llm.strategies.SingleDeviceStrategy" in text


def test_the_strategy_in_use_is_the_one_to_compile_with() -> None:
    from types import SimpleNamespace

    from lightning_llm.callbacks.startup_banner import _could_be_on

    options = SimpleNamespace(compile=False, activation_checkpointing="none")
    sharded = type("FSDP2Strategy", (), {"root_device": torch.device("cpu"), "blocks": options})
    run = SimpleNamespace(strategy=sharded(), world_size=2, precision="bf16-mixed", optimizers=[])
    offers = _could_be_on(run, Bigram(), None)
    assert "compile=True of lightning_llm.strategies.FSDP2Strategy" in offers


def test_frozen_parameters_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    module = Bigram()
    module.frozen = torch.nn.Linear(10, 100, bias=False).requires_grad_(False)
    assert "Bigram: 1.17k parameters (169 trained)" in banner(capsys, module)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch
def test_what_is_on_is_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(13, 13)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    module = Bigram()
    module.blocks = torch.nn.ModuleList(Block() for _ in range(2))
    strategy = SingleDeviceStrategy(compile={"backend": "eager"})
    text = banner(capsys, module, strategy=strategy)
    assert "compile on" in text
    assert "compile=True" not in text


def test_padding_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Data(LightningDataModule):
        packing = "pad"

        def train_dataloader(self) -> Any:
            return loader(make_rows(2))

    text = banner(capsys, data=Data())
    assert "packing pad" in text
    assert "packing concat or best_fit" in text


def test_batches_without_ids_have_no_step(capsys: pytest.CaptureFixture[str]) -> None:
    class Tensors(Bigram):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.table(batch).mean()

    text = banner(capsys, Tensors(), data=loader(list(torch.zeros(2, 3).long())))
    assert "run: 2 steps" in text
    assert "step:" not in text
