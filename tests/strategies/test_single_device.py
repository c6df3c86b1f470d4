"""`SingleDeviceStrategy` in the Trainer: device, losses, graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from strategy_models import VOCAB, Foreign, HuggingFace, Losses, loader, trainer
from torch import nn
from torch._dynamo.utils import counters
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lightning_llm import CausalLM
from lightning_llm.cli.training import RecipeCLI
from lightning_llm.models import TransformerConfig
from lightning_llm.strategies import SingleDeviceStrategy

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
SMALL = {
    "vocab_size": VOCAB,
    "max_seq_len": 16,
    "n_layers": 3,
    "dim": 32,
    "hidden_dim": 48,
    "head_dim": 8,
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def preset(name: str) -> CausalLM:
    """The published architecture in small: everything but its sizes."""
    heads = {"n_heads": 4, "n_kv_heads": 2}
    if (
        TransformerConfig.from_preset(name).n_kv_heads
        == TransformerConfig.from_preset(name).n_heads
    ):
        heads = {"n_heads": 4, "n_kv_heads": 4}
    return CausalLM(TransformerConfig.from_preset(name, **SMALL, **heads))


def mixture() -> CausalLM:
    return CausalLM(TransformerConfig(**SMALL, n_heads=4, n_experts=4))


def windows() -> CausalLM:
    pattern = {"sliding_window": 4, "sliding_window_pattern": 2}
    return CausalLM(TransformerConfig(**SMALL, n_heads=4, **pattern))


def dropout() -> CausalLM:
    return CausalLM(TransformerConfig(**SMALL, n_heads=4, dropout=0.2))


def llama() -> HuggingFace:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 0}
    return HuggingFace(LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, **heads)))


def gpt2() -> HuggingFace:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return HuggingFace(GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes)))


def fit(build: Callable[[], L.LightningModule], **options: Any) -> Losses:
    torch.manual_seed(3)
    module, losses = build(), Losses()
    strategy = SingleDeviceStrategy(**options)
    trainer(strategy=strategy, callbacks=[losses]).fit(module, loader(), loader(5))
    return losses


@pytest.mark.parametrize("name", TransformerConfig.presets())
def test_presets_compile_once(name: str) -> None:
    losses = fit(lambda: preset(name), compile={"backend": "eager"})
    # Validation comes first, training has its own graph, the last validation batch another.
    assert losses.graphs[2:] == [losses.graphs[1]] * 2
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("build", "checkpointing"),
    [
        (Foreign, "none"),
        (windows, "none"),
        (mixture, "none"),
        (llama, "none"),
        (gpt2, "none"),
        (Foreign, "full"),
        (dropout, "full"),
        (windows, "selective"),
        (mixture, "selective"),
        (llama, "selective"),
        (gpt2, "selective"),
    ],
)
def test_losses_do_not_change(build: Callable[[], L.LightningModule], checkpointing: Any) -> None:
    expected = fit(build)
    backend = "eager" if checkpointing == "none" else "aot_eager"
    compiled = fit(build, compile={"backend": backend}, activation_checkpointing=checkpointing)
    for found, reference in zip(compiled.train + compiled.val, expected.train + expected.val):
        torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-6)
    assert len(compiled.train) == 4
    assert 2 <= compiled.graphs[-1] == compiled.graphs[1]
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_trains_alike() -> None:
    def build() -> CausalLM:
        config = TransformerConfig(**SMALL, n_heads=4)
        return CausalLM(config, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))

    expected = fit(build)
    compiled = fit(build, compile=True, activation_checkpointing="selective")
    for found, reference in zip(compiled.train + compiled.val, expected.train + expected.val):
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)


def test_second_fit_and_test_find_their_code_compiled() -> None:
    module, losses = Foreign(), Losses()
    strategy = SingleDeviceStrategy(compile={"backend": "eager"})
    runner = trainer(strategy=strategy, callbacks=[losses])
    runner.fit(module, loader())
    first = counters["stats"]["unique_graphs"]
    assert module.body[0]._compiled_call_impl is None  # given back
    runner.fit_loop.max_epochs = 2
    runner.fit(module, loader())
    assert len(losses.train) == 8
    assert counters["stats"]["unique_graphs"] == first


def test_checkpoints_of_compiled_and_plain_runs_are_alike(tmp_path: Path) -> None:
    paths = []
    for options in ({}, {"compile": {"backend": "eager"}}):
        paths.append(tmp_path / f"{len(paths)}.ckpt")
        torch.manual_seed(3)
        runner = trainer(strategy=SingleDeviceStrategy(**options))
        runner.fit(Foreign(), loader())
        runner.save_checkpoint(paths[-1])
    plain, compiled = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    assert list(plain) == list(compiled)
    runner = trainer(strategy=SingleDeviceStrategy(), max_epochs=2)
    runner.fit(Foreign(), loader(), ckpt_path=paths[1])
    assert runner.global_step == 8


def test_blocks_must_exist() -> None:
    class Plain(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(16, 16)

    with pytest.raises(ValueError, match="Plain has no list of blocks"):
        trainer(strategy=SingleDeviceStrategy(compile=True)).fit(Plain(), loader())
    trainer(strategy=SingleDeviceStrategy()).fit(Plain(), loader())


def test_cuda_graphs_and_accumulation_are_refused() -> None:
    strategy = SingleDeviceStrategy(compile={"mode": "reduce-overhead"})
    with pytest.raises(ValueError, match="accumulate_grad_batches=2"):
        trainer(strategy=strategy, accumulate_grad_batches=2).fit(Foreign(), loader())


def test_device_is_the_accelerators_first() -> None:
    strategy = SingleDeviceStrategy()
    assert strategy.parallel_devices is None
    runner = L.Trainer(strategy=strategy, accelerator="cpu", logger=False)
    assert runner.strategy is strategy
    assert strategy.root_device == torch.device("cpu")
    assert runner.num_devices == 1
    strategy = SingleDeviceStrategy()
    strategy.parallel_devices = [torch.device("cuda", 1), torch.device("cuda", 2)]
    assert strategy.root_device == torch.device("cuda", 1)


def test_chosen_device_stays() -> None:
    assert SingleDeviceStrategy("cuda").root_device == torch.device("cuda", 0)
    strategy = SingleDeviceStrategy("cuda:1")
    assert strategy.parallel_devices == [torch.device("cuda", 1)]
    with pytest.raises(Exception, match="accelerator set to cpu"):
        L.Trainer(strategy=strategy, accelerator="cpu")
    L.Trainer(strategy=SingleDeviceStrategy("cpu"), accelerator="cpu", logger=False)


@pytest.mark.gpu
def test_automatic_accelerator_is_the_gpu() -> None:
    runner = L.Trainer(strategy=SingleDeviceStrategy(compile=True), logger=False)
    assert runner.strategy.root_device == torch.device("cuda", 0)


def test_recipe_names_the_strategy(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three four five six seven\n" * 50)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
trainer:
  accelerator: cpu
  logger: false
  strategy:
    class_path: lightning_llm.strategies.SingleDeviceStrategy
    init_args:
      compile:
        backend: aot_eager
      activation_checkpointing: selective
      block_class: Block
  plugins:
    - class_path: lightning_llm.plugins.MasterWeightsPrecision
      init_args:
        mode: stochastic_rounding
model:
  class_path: lightning_llm.CausalLM
  init_args:
    config: {{n_layers: 2, dim: 32, n_heads: 4, max_seq_len: 16}}
data:
  class_path: lightning_llm.TextDataModule
  init_args:
    train_files: ["{tmp_path}/text.txt"]
    cache_dir: "{tmp_path}/cache"
    tokenizer: {{algorithm: byte}}
    seq_len: 16
    micro_batch_size: 2
"""
    )
    cli = RecipeCLI("fit", ["--config", str(recipe)])
    strategy = cli.trainer.strategy
    assert isinstance(strategy, SingleDeviceStrategy)
    assert strategy.blocks.options["backend"] == "aot_eager"
    assert strategy.blocks.activation_checkpointing == "selective"
    assert strategy.precision_plugin.mode == "stochastic_rounding"
