"""`DDPStrategy` on two ranks: compiled, checkpointed and bfloat16 replicas."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch._dynamo.config as dynamo
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from ranks import run_on_ranks
from strategy_models import VOCAB, loader, trainer
from torch._dynamo.utils import counters

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.plugins import MasterWeightsPrecision
from lightning_llm.strategies import DDPStrategy

CONFIG = TransformerConfig(vocab_size=VOCAB, max_seq_len=16, n_layers=3, dim=32, n_heads=4)


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


class RankDependent(CausalLM):
    """Every rank starts from other weights; DDP then takes those of the first."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.01 * self.global_rank)


class Results(L.Callback):
    """What the rank ends with, and what the compiler did."""

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        masters = trainer.precision_plugin.state_dict().get("masters", {})
        self.found = {
            "weights": {name: weight.clone() for name, weight in module.state_dict().items()},
            "masters": {name: master.clone() for name, master in masters.items()},
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": len(counters["graph_break"]),
            "split": dynamo.optimize_ddp,
        }


def fit(**options: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    results = Results()
    runner = trainer(devices=2, callbacks=[results], **options)
    runner.fit(RankDependent(CONFIG, optimizer=sgd), loader())
    return {**results.found, "split afterwards": dynamo.optimize_ddp}


def all_runs() -> dict[str, Any]:
    """Runs of one rank, one after the other: starting processes is what takes long."""
    compiled = {"compile": {"backend": "aot_eager"}, "activation_checkpointing": "selective"}
    two = {"accumulate_grad_batches": 2}
    runs = {
        "plain": fit(strategy=LightningDDPStrategy()),
        "compiled": fit(strategy=DDPStrategy(**compiled)),
        "accumulated": fit(strategy=LightningDDPStrategy(), **two),
    }
    for mode in ("master", "stochastic_rounding"):
        plugin = MasterWeightsPrecision(mode)  # type: ignore[arg-type]
        runs[mode] = fit(strategy=DDPStrategy(), plugins=[plugin], **two)
    return runs


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("ranks")
    return run_on_ranks(all_runs, 2, directory)


@pytest.mark.distributed
@pytest.mark.slow
def test_compiled_replicas_train_like_plain_ones(ranks: list[dict[str, Any]]) -> None:
    plain, compiled = ranks[0]["plain"], ranks[0]["compiled"]
    assert list(compiled["weights"]) == list(plain["weights"])
    for name, weight in plain["weights"].items():
        torch.testing.assert_close(compiled["weights"][name], weight, rtol=1e-5, atol=1e-6)
    assert (compiled["graphs"], compiled["breaks"]) == (1, 0)
    assert compiled["split"] is False
    assert compiled["split afterwards"] == plain["split"]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("run", ["plain", "compiled", "master", "stochastic_rounding"])
def test_replicas_stay_alike(ranks: list[dict[str, Any]], run: str) -> None:
    first, second = (rank[run] for rank in ranks)
    assert bool(first["masters"]) == (run == "master")
    for part in ("weights", "masters"):
        for name, weight in first[part].items():
            assert torch.equal(weight, second[part][name]), f"{part}: {name}"


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["master", "stochastic_rounding"])
def test_bfloat16_replicas_learn_what_float32_ones_do(
    ranks: list[dict[str, Any]], mode: str
) -> None:
    plain, rounded = ranks[0]["accumulated"]["weights"], ranks[0][mode]["weights"]
    for name, weight in plain.items():
        assert rounded[name].dtype == torch.bfloat16
        assert (rounded[name].float() - weight).norm() < 0.02 * weight.norm()


def test_options_of_both_parents_are_taken() -> None:
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True, "find_unused_parameters": True}
    assert strategy.process_group_backend == "gloo"
    with pytest.raises(ValueError, match="activation_checkpointing='all'"):
        DDPStrategy(activation_checkpointing="all")  # type: ignore[arg-type]
