"""The products of an optimizer's step count in a plan."""

from __future__ import annotations

import pytest
import torch

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.optim import AdamW, Muon
from lightning_llm.planning import Numerics, Parallelism, Run, find_device, make_plan
from lightning_llm.planning.optimizer_states import optimizer_of, step_flops

DIM, HIDDEN, LAYERS, STEPS = 64, 128, 2, 5


def module(optimizer: type[torch.optim.Optimizer]) -> CausalLM:
    config = TransformerConfig(
        vocab_size=256, n_layers=LAYERS, dim=DIM, hidden_dim=HIDDEN, n_heads=4, max_seq_len=32
    )
    with torch.device("meta"):
        return CausalLM(config, optimizer=optimizer)


def iteration(rows: int, columns: int) -> int:
    """Operations of X X^T, of its square and of the product with X, for the shorter side first."""
    short, long = sorted((rows, columns))
    return 4 * short**2 * long + 2 * short**3


def test_the_products_of_muon_are_those_of_newton_and_schulz() -> None:
    # Query, key, value and output are matrices of their own; gate, up and down.
    per_layer = 4 * iteration(DIM, DIM) + 3 * iteration(DIM, HIDDEN)
    assert step_flops(optimizer_of(module(Muon))) == STEPS * LAYERS * per_layer
    assert step_flops(optimizer_of(module(AdamW))) == 0


@pytest.mark.parametrize("ranks", [1, 8])
def test_every_rank_spends_the_time_of_all_of_them(ranks: int) -> None:
    device = find_device("h100")
    run = Run(
        module(Muon),
        Parallelism("fsdp2", shards=ranks),
        Numerics.of("bf16-mixed"),
        ranks,
        seq_len=32,
    )
    plan = make_plan(run, device)
    states = plan.memory.weights + plan.memory.gradients + plan.memory.optimizer
    products = step_flops(optimizer_of(run.module)) / (0.62 * device.bf16_flops)
    traffic = 2 * states / (0.9 * device.memory_bandwidth)
    assert plan.time.optimizer == pytest.approx(products + traffic)
