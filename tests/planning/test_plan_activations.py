"""What a forward pass leaves in memory, on paper and on the allocator's own account."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kept_memory import CONFIGS, kept_by_forward, run_of

from lightning_llm import CausalLM
from lightning_llm.planning.activations import MODES, trace_activations
from lightning_llm.strategies import SingleDeviceStrategy


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_those_of_a_forward_pass(name: str, mode: Any, mixed: bool) -> None:
    torch.manual_seed(0)
    strategy = SingleDeviceStrategy(activation_checkpointing=mode)
    module = CausalLM(CONFIGS[name])
    strategy.blocks.apply(module)
    found = kept_by_forward(module, mixed)
    run = run_of(name, strategy, mixed)
    # Checkpointed, little is left, of which the plan's rounded ends are more.
    tolerance = 0.15 if mode == "none" else 0.25
    assert trace_activations(run, mode).kept == pytest.approx(found, rel=tolerance)
