"""Fewer experts than ranks: weights are spread evenly all the same, and train like whole ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp2_runs import CONFIG as SMALL
from fsdp2_runs import fit, spawn
from lightning.pytorch import Callback
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing import assert_close

from lightning_llm import CausalLM
from lightning_llm.optim import Muon
from lightning_llm.planning.pretended_ranks import pretended_ranks
from lightning_llm.plugins import AtomicCheckpointIO
from lightning_llm.strategies import FSDP2Strategy
from lightning_llm.strategies.sharding import placement

pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch.distributed and Lightning
CONFIG = replace(SMALL, n_experts=3, n_experts_per_token=2, hidden_dim=24, n_layers=2)
RANKS = 4


class Sizes(Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.local = [w.to_local().numel() for w in pl_module.parameters()]


def module(optimizer: Any = None) -> CausalLM:
    # A rank balances its own rows, which no one process does.
    return CausalLM(replace(CONFIG, router_aux_loss_weight=0.0), optimizer=optimizer)


OPTIMIZERS = {"adamw": None, "muon": partial(Muon, lr=1e-4)}


def on_ranks(directory: Path) -> dict[str, Any]:
    sizes = Sizes()
    options: dict[str, Any] = {"devices": RANKS, "callbacks": [sizes]}
    found: dict[str, Any] = {
        name: fit(
            partial(module, optimizer),
            strategy=FSDP2Strategy(),
            save=directory / f"{name}.ckpt",
            **options,
        )
        for name, optimizer in OPTIMIZERS.items()
    }
    fit(module, strategy=FSDP2Strategy(reshard_after_forward=2), max_steps=1, devices=RANKS)
    return found | {"local": sizes.local}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("few_experts")


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    return spawn(on_ranks, RANKS, directory)


@pytest.mark.distributed
def test_ranks_hold_equal_parts(ranks: list[dict[str, Any]]) -> None:
    shapes = [weight.shape for weight in module().parameters() if weight.ndim == 3]
    assert {shape[0] for shape in shapes} == {3}
    whole = sum(weight.numel() for weight in module().parameters())
    for rank in ranks:
        assert sum(rank["local"]) <= 1.05 * whole / RANKS  # the vocabulary does not divide


@pytest.mark.distributed
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_train_like_whole_ones(ranks: Any, directory: Path, name: str) -> None:
    build = partial(module, OPTIMIZERS[name])
    wanted = fit(build)
    for weight, value in wanted["weights"].items():
        found = ranks[0][name]["weights"][weight]
        if name == "adamw":
            assert_close(found, value, rtol=0, atol=1e-5, msg=weight)
        else:  # blows rounding up where singular values are small: a choice of experts flips
            change = value - wanted["start"]["weights"][weight]
            assert (found - value).norm() < 0.4 * change.norm(), weight
    resumed = fit(
        build,
        seed=9,
        ckpt_path=directory / f"{name}.ckpt",
        plugins=[AtomicCheckpointIO()],
        max_steps=5,
    )
    for part in ("weights", "optimizer"):
        for key, value in ranks[0][name]["saved"][part].items():
            assert torch.equal(resumed["start"][part][key], value), key


@pytest.mark.parametrize(
    ("shape", "ranks", "dim"),
    [
        ((8, 64, 32), 64, 1),  # eight experts
        ((8, 48, 128), 64, 2),
        ((8, 48, 31), 64, None),
        ((128, 64, 32), 64, None),
        ((50257, 64), 64, None),  # padding of a vocabulary is small
        ((8,), 64, None),
    ],
)
def test_the_first_dimension_unless_much_were_padded(
    shape: tuple[int, ...], ranks: int, dim: int | None
) -> None:
    found = placement(nn.Parameter(torch.empty(shape, device="meta")), ranks)
    assert found == (None if dim is None else Shard(dim))


def test_dimensions_of_split_layers_are_left_to_them() -> None:
    with pretended_ranks(1, 1, 2) as ranks:
        split = distribute_tensor(
            torch.empty(2, 64, 32), ranks["tensor_parallel"], [Shard(1)], src_data_rank=None
        )
        assert isinstance(split, DTensor)
        assert placement(nn.Parameter(split), 4) == Shard(2)
