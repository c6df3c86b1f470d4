"""AdamW: torch's numbers, our defaults, and its use from YAML."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.testing import assert_close

from lightning_llm.optim import AdamW, WarmupCosine, parameter_groups


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for step in range(steps):
        ids = torch.arange(step, step + 4) % 7
        optimizer.zero_grad()
        model(ids).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [None, False])
def test_the_numbers_are_those_of_torch(fused: bool | None) -> None:
    ours = network().double()
    plain = copy.deepcopy(ours)
    train(ours, AdamW(parameter_groups(ours), lr=1e-2, weight_decay=0.3, fused=fused))
    decayed = [plain[1].weight, plain[3].weight]
    spared = [p for p in plain.parameters() if all(p is not d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": spared, "weight_decay": 0.0}]
    train(plain, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), foreach=False, fused=False))
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_defaults() -> None:
    defaults = AdamW(network().parameters()).defaults
    expected = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    assert {key: defaults[key] for key in expected} == expected


@pytest.mark.parametrize(
    "params",
    [
        lambda model: model.parameters(),
        lambda model: model.named_parameters(),
        lambda model: parameter_groups(model),
        lambda model: [{"params": model.parameters()}],
        lambda model: [{"params": model[1].weight}],
    ],
    ids=["tensors", "names", "groups", "generator in a group", "one tensor in a group"],
)
def test_fused_wherever_the_device_has_it(params: Any) -> None:
    def chosen(model: nn.Module, **options: Any) -> bool | None:
        return AdamW(params(model), **options).param_groups[0]["fused"]

    assert chosen(network()) is True
    assert not chosen(network(), fused=False)
    assert not chosen(network().to("meta"))


def test_resume_is_exact() -> None:
    model = network()
    optimizer = AdamW(parameter_groups(model))
    train(model, optimizer)
    again = copy.deepcopy(model)
    resumed = AdamW(parameter_groups(again))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    train(again, resumed)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_class_paths_of_a_recipe() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    parser.add_argument("--lr_scheduler", type=LRSchedulerCallable)
    parsed = parser.parse_object(
        {
            "optimizer": {
                "class_path": "lightning_llm.optim.AdamW",
                "init_args": {"lr": 1e-3, "betas": [0.8, 0.9]},
            },
            "lr_scheduler": {
                "class_path": "lightning_llm.optim.WarmupCosine",
                "init_args": {"warmup_steps": 3},
            },
        }
    )
    made = parser.instantiate(parsed)
    optimizer = made.optimizer(parameter_groups(network()))
    assert isinstance(optimizer, AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    schedule = made.lr_scheduler(optimizer)
    assert isinstance(schedule, WarmupCosine)
    assert optimizer.param_groups[0]["lr"] == 1e-3 / 4
