"""Bytes that a forward pass leaves behind, on the allocator's own account."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.models.context import ContextShard
from lightning_llm.planning import Numerics, Parallelism, Run
from lightning_llm.strategies import FSDP2Strategy, SingleDeviceStrategy
from lightning_llm.strategies.blocks import find_blocks
from lightning_llm.strategies.context_parallel import ContextParallel
from lightning_llm.strategies.tensor_parallel import TensorParallel

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
# Of two ranks that share layers: architecture, checkpointing, and whether in bfloat16.
SPLIT_CASES = [
    ("llama", "none", True),
    ("llama", "none", False),
    ("llama", "selective", True),
    ("llama", "full", True),
    ("gpt2", "none", False),
    ("gpt2", "selective", False),
]
# Of two ranks that share sequences.
SHARED_CASES = [
    ("llama", "selective", True),
    ("llama", "full", True),
    ("gpt2", "none", False),
]


class NoRule(ContextShard):
    """Its kernels see all keys: a processor's would keep the masks that a GPU's do without."""

    def causal(self, n_queries: int, n_keys: int) -> Any:
        return None


class Pauses(TorchDispatchMode):
    """Lets the thread of a collective finish with its tensors.

    Where it were the last to let go of one, the profiler would not see that it is given back.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops._c10d_functional.wait_tensor.default or AsyncCollectiveTensor in types:
            time.sleep(0.003)
        return out


def kept_by_forward(module: CausalLM, mixed: bool, length: int = LENGTH) -> int:
    """Bytes that were asked for in a forward pass and not given back at its end."""
    ids = torch.randint(0, 64, (ROWS, length))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)

    def forward() -> torch.Tensor:
        with autocast, Pauses():
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


def kept_by_split(name: str, mode: Any, mixed: bool) -> int:
    """The same on one of the ranks of this process group, which share all layers.

    With the weights that FSDP2 would gather: in the dtype of the arithmetic.
    """
    module = CausalLM(CONFIGS[name])
    if mixed:
        module.to(torch.bfloat16)
    split = TensorParallel(module, init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    for part in [*find_blocks(module), module]:
        split.split(part)
    FSDP2Strategy(activation_checkpointing=mode).blocks.apply(module, inside_hooks=True)
    return min(kept_by_forward(module, mixed) for _ in range(3))


def kept_by_shared(name: str, mode: Any, mixed: bool) -> int:
    """The same on one of the ranks of this process group, which share all sequences."""
    module = CausalLM(CONFIGS[name])
    if mixed:
        module.to(torch.bfloat16)
    ranks = torch.distributed.get_world_size()
    shared = ContextParallel(module, init_device_mesh("cpu", (ranks,)))
    shared.shard.__class__ = NoRule
    FSDP2Strategy(activation_checkpointing=mode).blocks.apply(module, inside_hooks=True)
    return min(kept_by_forward(module, mixed, LENGTH // ranks) for _ in range(3))


def run_of(name: str, strategy: FSDP2Strategy | SingleDeviceStrategy, mixed: bool) -> Run:
    """The same on paper."""
    ranks = getattr(strategy, "tensor_parallel_size", 1)
    ranks *= getattr(strategy, "context_parallel_size", 1)
    with torch.device("meta"):
        module = CausalLM(CONFIGS[name])
    return Run(
        module=module,
        parallelism=Parallelism.of(strategy, ranks),
        numerics=Numerics.of("bf16-mixed" if mixed else "32-true"),
        world_size=ranks,
        micro_batch_size=ROWS,
        seq_len=LENGTH,
    )
