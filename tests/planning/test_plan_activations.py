"""What a forward pass leaves in memory, on paper and on the allocator's own account."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.planning import Numerics, Parallelism, Run
from lightning_llm.planning.activations import MODES, trace_activations
from lightning_llm.strategies import SingleDeviceStrategy

# Not a multiple of 64: the processor then has the attention kernel whose memory is a GPU's.
LENGTH, ROWS = 200, 2
SMALL: dict[str, Any] = {"vocab_size": 64, "max_seq_len": 256, "n_layers": 8, "dim": 128}
CONFIGS = {
    "llama": TransformerConfig(**SMALL, n_heads=4, n_kv_heads=2),
    "gpt2": TransformerConfig(
        **SMALL,
        n_heads=4,
        positions="learned",
        norm="layernorm",
        mlp="gelu",
        attention_bias=True,
        mlp_bias=True,
    ),
}


def kept_by_forward(module: CausalLM, strategy: SingleDeviceStrategy, mixed: bool) -> int:
    """Bytes that were asked for in a forward pass and not given back at its end."""
    strategy.blocks.apply(module)
    ids = torch.randint(0, 64, (ROWS, LENGTH))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)

    def forward() -> torch.Tensor:
        with autocast:
            return module.model.backbone(ids)

    forward()  # tables of positions and the like are made once
    gc.collect()  # what earlier tests left in cycles must not be given back meanwhile
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            hidden = forward()
    finally:
        gc.enable()
    events = profiler.profiler.kineto_results.events()
    total = sum(event.nbytes() for event in events if event.name() == "[memory]")
    assert hidden.requires_grad
    return total


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_those_of_a_forward_pass(name: str, mode: Any, mixed: bool) -> None:
    torch.manual_seed(0)
    strategy = SingleDeviceStrategy(activation_checkpointing=mode)
    found = kept_by_forward(CausalLM(CONFIGS[name]), strategy, mixed)
    with torch.device("meta"):
        module = CausalLM(CONFIGS[name])
    run = Run(
        module=module,
        parallelism=Parallelism.of(strategy, 1),
        numerics=Numerics.of("bf16-mixed" if mixed else "32-true"),
        micro_batch_size=ROWS,
        seq_len=LENGTH,
    )
    # Checkpointed, little is left, of which the plan's rounded ends are more.
    tolerance = 0.15 if mode == "none" else 0.25
    assert trace_activations(run, mode).kept == pytest.approx(found, rel=tolerance)
