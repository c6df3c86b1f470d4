"""StartupBanner: what is on, what could be, and how large a step is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision

from lightning_llm.callbacks import StartupBanner
from lightning_llm.callbacks._precision_name import precision_name
from lightning_llm.callbacks.startup_banner import _could_be_on
from lightning_llm.data import TokenDataModule, TokenStoreWriter
from lightning_llm.plugins import BF16MixedPrecision, Float8Precision, MasterWeightsPrecision
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
    assert "compile=True" not in text  # there are no blocks that could be compiled


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(13, 13)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def with_blocks() -> Bigram:
    module = Bigram()
    module.blocks = torch.nn.ModuleList(Block() for _ in range(2))
    return module


def offers(module: Any = None, **changes: Any) -> list[str]:
    """What is offered to a run that is only described."""
    device = torch.device(changes.pop("device", "cpu"))
    name = changes.pop("strategy", "SingleDeviceStrategy")
    facts = {
        "strategy": type(name, (), {"root_device": device, **changes.pop("has", {})})(),
        "precision_plugin": changes.pop("plugin", BF16MixedPrecision()),
        "optimizers": [],
        "gradient_clip_val": None,
    }
    return _could_be_on(SimpleNamespace(**facts | changes), module or with_blocks(), None)


COMPILE = "compile=True of lightning_llm.strategies."


@pytest.mark.parametrize(
    ("strategy", "offered"),
    [
        ("SingleDeviceStrategy", [f"{COMPILE}SingleDeviceStrategy"]),
        ("DDPStrategy", [f"{COMPILE}DDPStrategy"]),
        ("FSDPStrategy", [f"{COMPILE}FSDP2Strategy"]),
        ("DeepSpeedStrategy", []),
    ],
)
def test_the_strategy_that_does_the_same_is_the_one_to_compile_with(
    monkeypatch: pytest.MonkeyPatch, strategy: str, offered: list[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert offers(strategy=strategy) == offered
    options = SimpleNamespace(compile=False, activation_checkpointing="none")
    assert offers(strategy="Own", has={"blocks": options}) == [f"{COMPILE}Own"]


def test_without_a_compiler_nothing_is_to_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert offers() == []
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert offers(device="mps") == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))  # Triton needs 7.0
    monkeypatch.setattr("lightning_llm.callbacks._hardware.find_spec", lambda _: object())
    assert offers(device="cuda") == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    assert offers(device="cuda") == [f"{COMPILE}SingleDeviceStrategy"]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_is_offered_to_float32_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert ("precision bf16-mixed" in offers(plugin=Precision())) is has_bf16

    class Quantized(Precision):  # float32 by name only
        pass

    assert "precision bf16-mixed" not in offers(plugin=Quantized())


def test_fused_is_offered_where_clipping_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 0))
    optimizer = torch.optim.AdamW(Bigram().parameters(), fused=False)
    run = {"device": "cuda", "optimizers": [optimizer]}
    amp = MixedPrecision("bf16-mixed", "cuda")
    assert offers(**run, plugin=amp) == ["fused=True of the optimizer"]
    [offer] = offers(**run, plugin=amp, gradient_clip_val=1.0)
    assert offer.endswith("with lightning_llm.plugins.BF16MixedPrecision in trainer.plugins")
    assert offers(**run, gradient_clip_val=1.0) == ["fused=True of the optimizer"]
    half = MixedPrecision("16-mixed", "cuda", scaler=object())
    assert offers(**run, plugin=half, gradient_clip_val=1.0) == []


class Unnamed(Precision):
    """Leaves the name at Lightning's ``32-true``."""


@pytest.mark.parametrize(
    ("plugin", "name"),
    [
        (Precision(), "32-true"),
        (MixedPrecision("bf16-mixed", "cpu"), "bf16-mixed"),
        (HalfPrecision("bf16-true"), "bf16-true"),
        (BF16MixedPrecision(), "bf16-mixed (BF16MixedPrecision)"),
        (Float8Precision("rowwise"), "float8 rowwise over bf16-mixed (Float8Precision)"),
        (
            MasterWeightsPrecision(),
            "bf16 weights with float32 masters (MasterWeightsPrecision)",
        ),
        (
            MasterWeightsPrecision("stochastic_rounding"),
            "bf16 weights rounded stochastically (MasterWeightsPrecision)",
        ),
        (Unnamed(), "32-true (Unnamed)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_precision_in_use_is_named(plugin: Precision, name: str) -> None:
    assert precision_name(SimpleNamespace(precision_plugin=plugin)) == name


def test_the_banner_names_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    text = banner(capsys, plugins=[MasterWeightsPrecision()])
    assert "precision bf16 weights with float32 masters (MasterWeightsPrecision)  compile" in text


def test_frozen_parameters_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    module = Bigram()
    module.frozen = torch.nn.Linear(10, 100, bias=False).requires_grad_(False)
    assert "Bigram: 1.17k parameters (169 trained)" in banner(capsys, module)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch
def test_what_is_on_is_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = SingleDeviceStrategy(compile={"backend": "eager"})
    text = banner(capsys, with_blocks(), strategy=strategy)
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


def test_data_that_does_not_fill_a_batch_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def started(tokens: int) -> str:
        with TokenStoreWriter(tmp_path / str(tokens), vocab_size=13) as writer:
            writer.add(torch.arange(tokens).numpy() % 13)
        data = TokenDataModule(train_store=tmp_path / str(tokens), seq_len=6, micro_batch_size=4)
        return banner(capsys, data=data, max_steps=1)

    said = "the data has 2 of the 4 rows of a batch, the others are padding: lower micro_batch_size"
    assert said in started(tokens=13)
    assert "padding" not in started(tokens=25)


def test_batches_without_ids_have_no_step(capsys: pytest.CaptureFixture[str]) -> None:
    class Tensors(Bigram):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.table(batch).mean()

    text = banner(capsys, Tensors(), data=loader(list(torch.zeros(2, 3).long())))
    assert "run: 2 steps" in text
    assert "step:" not in text


def test_the_table_of_lightning_is_not_shown_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(callbacks=[StartupBanner()], enable_model_summary=True)
    run.fit(Bigram(), loader(make_rows(8), batch_size=2))
    shown = capsys.readouterr()
    assert "table     169  100.0%" in shown.err
    assert "Total params" not in shown.out + shown.err
