"""`DDPStrategy` on two ranks: compiled and checkpointed replicas train like plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch._dynamo.config as dynamo
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from strategy_models import VOCAB, loader, trainer
from torch._dynamo.utils import counters

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.plugins import MasterWeightsPrecision
from lightning_llm.strategies import DDPStrategy

CONFIG = TransformerConfig(vocab_size=VOCAB, max_seq_len=16, n_layers=3, dim=32, n_heads=4)


class SaveResults(L.Callback):
    """Writes the weights that each rank ends with, and what the compiler did."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        results = {
            "weights": module.state_dict(),
            "masters": trainer.precision_plugin.state_dict().get("masters", {}),
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": len(counters["graph_break"]),
            "splits": dynamo.optimize_ddp,
        }
        torch.save(results, self.directory / f"{trainer.global_rank}.pt")


class RankDependent(CausalLM):
    """Every rank starts from other weights; DDP then takes those of the first."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.01 * self.global_rank)


def fit(directory: Path, strategy: LightningDDPStrategy, **options: Any) -> list[dict[str, Any]]:
    """What both ranks saved."""
    directory.mkdir()
    torch.manual_seed(3)
    module = RankDependent(CONFIG, optimizer=momentum_sgd)
    options = {"strategy": strategy, "devices": 2, "callbacks": [SaveResults(directory)]} | options
    trainer(**options).fit(module, loader())
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(2)]


def momentum_sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


@pytest.mark.distributed
@pytest.mark.slow
def test_compiled_replicas_train_like_plain_ones(tmp_path: Path) -> None:
    plain = LightningDDPStrategy(start_method="spawn")
    ours = DDPStrategy(
        start_method="spawn",
        compile={"backend": "aot_eager"},
        activation_checkpointing="selective",
    )
    expected = fit(tmp_path / "plain", plain)
    found = fit(tmp_path / "ours", ours)
    assert list(found[0]["weights"]) == list(expected[0]["weights"])
    for name, weight in expected[0]["weights"].items():
        torch.testing.assert_close(found[0]["weights"][name], weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[0]["weights"][name], found[1]["weights"][name])
    assert (found[0]["graphs"], found[0]["breaks"], found[0]["splits"]) == (1, 0, False)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["master", "stochastic_rounding"])
def test_replicas_in_bfloat16_stay_alike(tmp_path: Path, mode: Any) -> None:
    first, second = fit(
        tmp_path / "run",
        DDPStrategy(start_method="spawn"),
        plugins=[MasterWeightsPrecision(mode)],
        accumulate_grad_batches=2,
    )
    for part in ("weights", "masters"):
        for name, weight in first[part].items():
            assert torch.equal(weight, second[part][name]), f"{part}: {name}"
    assert first["weights"]["model.embedding.weight"].dtype == torch.bfloat16


def test_options_of_both_parents_are_taken() -> None:
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True, "find_unused_parameters": True}
    assert strategy.process_group_backend == "gloo"
    with pytest.raises(ValueError, match="activation_checkpointing='all'"):
        DDPStrategy(activation_checkpointing="all")  # type: ignore[arg-type]
