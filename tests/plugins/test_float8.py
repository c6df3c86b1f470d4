"""`Float8Precision`: which layers, which device, and a loss like that of bfloat16."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from precision_models import Foreign, language_model, rows, train, trainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_llm import CausalLM
from lightning_llm.plugins import BF16MixedPrecision, Float8Precision
from lightning_llm.plugins.precision.float8 import check_device
from lightning_llm.plugins.precision.float8_linear import Float8Linear
from lightning_llm.strategies import SingleDeviceStrategy

both_recipes = pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])


@pytest.mark.slow
def test_loss_is_that_of_bfloat16() -> None:
    """From 3.9 nats to 1.6 in 100 steps."""
    reference = train(language_model(), 100, BF16MixedPrecision()).last(20)
    assert reference < 2
    for recipe in ("tensorwise", "rowwise"):
        plugin = Float8Precision(recipe, min_dim=48)  # type: ignore[arg-type]
        assert train(language_model(), 100, plugin).last(20) == pytest.approx(reference, rel=0.02)


@both_recipes
def test_no_processor_decides_how_a_cpu_multiplies(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch's own float8 product is a reference loop where it finds AMX without float8."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("torch chooses by the processor")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        losses = train(language_model(), 2, Float8Precision(recipe, min_dim=48)).losses
    assert len(losses) == 2
    assert caplog.text.count("no CPU has float8 products that are worth it") == 1


def converted(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if isinstance(part, Float8Linear)}


def test_which_layers_are_converted() -> None:
    module = language_model(n_layers=1, tie_embeddings=False)
    Float8Precision(min_dim=48).convert_module(module)
    block = "model.blocks.0"
    assert converted(module) == {
        f"{block}.attention.qkv",
        f"{block}.attention.out",
        f"{block}.mlp.up",
        f"{block}.mlp.gate",
        f"{block}.mlp.down",
    }


def test_heads_of_foreign_models_are_left_alone() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, num_attention_heads=2, eos_token_id=0, **sizes)
    )
    llama.unusual = llama.lm_head  # a declared head, whatever it is called
    del llama.lm_head
    llama.get_output_embeddings = lambda: llama.unusual
    Float8Precision(min_dim=32).convert_module(llama)
    assert len(converted(llama)) == 7
    assert not any("unusual" in name for name in converted(llama))


class Mixed(nn.Module):
    """Layers that suit float8, and one for each reason not to."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 64)
        self.suits = nn.Linear(64, 128)
        self.narrow = nn.Linear(64, 32)
        self.odd = nn.Linear(64, 100)
        self.tied = nn.Linear(64, 64, bias=False)
        self.tied.weight = self.embedding.weight
        self.own = OwnForward(64, 64)
        self.lm_head = nn.Linear(64, 64)
        self.router = nn.Linear(64, 64)


class OwnForward(nn.Linear):
    """Not a plain product, as quantized layers and adapters are not."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_reasons_to_be_left_alone() -> None:
    module = Mixed()
    Float8Precision(min_dim=64).convert_module(module)
    assert converted(module) == {"suits", "router"}
    module = Mixed()
    Float8Precision(min_dim=64, exclude=["router"]).convert_module(module)
    assert converted(module) == {"suits", "lm_head"}


def test_nothing_to_convert_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"no layer to convert among \d+ linear layers.*min_dim=2048"
    ):
        trainer(Float8Precision()).fit(language_model(n_layers=2), DataLoader(rows(2)))


def test_wrong_recipe() -> None:
    with pytest.raises(ValueError, match="recipe='blockwise' must be one of"):
        Float8Precision("blockwise")  # type: ignore[arg-type]


def test_device_without_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"8\.9.*NVIDIA A100 has 8\.0; use BF16MixedPrecision"):
        check_device(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_device(torch.device("cuda", 0))
    with pytest.raises(ValueError, match="no float8 arithmetic on mps"):
        check_device(torch.device("mps"))


class Save(L.Callback):
    """Keeps the state dict and a checkpoint from inside the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str] = []

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert converted(module)
        copied = copy.deepcopy(module.model)
        assert converted(copied)
        self.keys = list(module.state_dict())
        trainer.save_checkpoint(self.path)


@both_recipes
def test_names_stay_and_layers_are_given_back(recipe: Any, tmp_path: Path) -> None:
    module = language_model()
    classes = [type(part) for part in module.modules()]
    attributes = [set(vars(part)) for part in module.modules()]
    save = Save(tmp_path / "inside.ckpt")
    train(module, 2, Float8Precision(recipe, min_dim=48), callbacks=[save])
    assert save.keys == list(module.state_dict())
    assert [type(part) for part in module.modules()] == classes
    assert [set(vars(part)) for part in module.modules()] == attributes
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    loaded = CausalLM.load_from_checkpoint(save.path, weights_only=True)
    for name, weight in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_compiled_blocks_train_alike(checkpointing: Any) -> None:
    torch.compiler.reset()
    expected = train(language_model(), 4, Float8Precision(min_dim=48)).losses
    strategy = SingleDeviceStrategy(
        compile={"backend": "aot_eager"}, activation_checkpointing=checkpointing
    )
    found = train(language_model(), 4, Float8Precision(min_dim=48), strategy=strategy).losses
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


def test_foreign_module_with_clipping() -> None:
    module = Foreign()
    module.hidden = nn.Linear(32, 32)
    module.norm = nn.Sequential(module.norm, module.hidden)
    plugin = Float8Precision(min_dim=32)
    losses = train(module, 30, plugin, gradient_clip_val=1.0).losses
    assert losses[-1] < losses[0]
