"""Layers of a run's model on fake tensors, which have shapes and no values, ready to be called.

Shapes: B batch, T sequence, D model width, N ranks that share the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh

from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.models.block import Block
from lightning_llm.planning.pretended_ranks import pretended_ranks
from lightning_llm.planning.run import Run
from lightning_llm.strategies.tensor_parallel import TensorParallel


@contextmanager
def fake_arithmetic(run: Run) -> Iterator[DeviceMesh | None]:
    """Within, tensors are fake; yields the ranks that share layers, None where none do."""
    tensor = run.parallelism.tensor
    ranks: Any = pretended_ranks(1, 1, tensor) if tensor > 1 else nullcontext()
    with ranks as mesh, FakeTensorMode(allow_non_fake_inputs=True):
        yield None if mesh is None else mesh["tensor_parallel"]


def autocast(run: Run) -> Any:
    """The context that a forward pass of the run is in."""
    if not run.numerics.autocast:
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def fake_block(run: Run, layer: int, mesh: DeviceMesh | None) -> nn.Module:
    """A block as a rank computes it: its share of split layers, in the dtype of the arithmetic."""
    network = _fake_network(run, layer)
    if mesh is not None:
        TensorParallel(nn.ModuleList([network]), mesh).split(network.blocks[0])
    block = network.blocks[0]
    block._forward_pre_hooks.clear()  # of the first block alone
    return block


def fake_network(run: Run, mesh: DeviceMesh) -> Transformer:
    """A split network whose blocks do nothing, with whatever is around them."""
    network = _fake_network(run, 0)
    holder = nn.ModuleList([network])
    split = TensorParallel(holder, mesh)
    block = network.blocks[0]
    split.split(block)
    split.split(holder)
    cast(Any, block).forward = lambda hidden, *_: (hidden, None)
    return network


def _fake_network(run: Run, layer: int) -> Transformer:
    """One block, and what belongs to none."""
    config: TransformerConfig = run.module.model.config
    with torch.device("meta"):
        network: Transformer = type(run.module.model)(config)
        network.blocks = nn.ModuleList([Block(config, layer)])
    if run.numerics.float8 is not None:
        run.numerics.float8.convert_module(network.blocks)
    memory: dict[int, nn.Parameter] = {}
    for part in network.modules():
        for name, value in list(part._parameters.items()):
            if value is None:
                continue
            if id(value) not in memory:
                empty = torch.empty(value.shape, dtype=run.param_dtype)
                memory[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad)
            part._parameters[name] = memory[id(value)]
    return network


def block_length(run: Run) -> int:
    """Tokens to call a block with, by which its activations can be told from its weights.

    A length that no blocked kernel of the CPU takes, and that no weight has for a dimension.
    """
    ranks = run.parallelism.tensor
    whole = _extents(run.module.model.config)
    taken = whole | {extent // ranks for extent in whole}
    length = run.seq_len + ranks
    while length % 64 == 0 or taken & {length, length // ranks}:
        length += ranks
    return length


def _extents(config: TransformerConfig) -> set[int]:
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    return {config.dim, config.hidden_dim or 0, rows, config.n_heads * config.head_dim}


def block_inputs(run: Run, layer: int, length: int) -> list[Any]:
    """What a block is called with, ``x`` of this rank first; see ``Block.forward``."""
    config: TransformerConfig = run.module.model.config
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    rows, own = run.micro_batch_size, length // run.parallelism.tensor
    x = torch.empty(rows, own, config.dim, dtype=run.param_dtype, requires_grad=True)
    cos = sin = mask = values = start = None
    if config.layer_rotation(layer) is not None:
        shape = (1, length, 1, 1, config.rotary_dim // 2)
        cos, sin = torch.empty(shape), torch.empty(shape)
    if mask_elements(run, config.layer_window(layer)):
        heads = config.n_heads if config.positions == "alibi" else 1
        mask = torch.empty(1, heads, length, length, dtype=run.numerics.compute)
    if config.residual_scalars:
        start = torch.empty_like(x)
    if config.has_value_embedding(layer):
        width = config.n_kv_heads * config.head_dim
        values = torch.empty(*x.shape[:2], width, dtype=x.dtype, requires_grad=True)
    return [x, cos, sin, mask, None, start, values]


def mask_elements(run: Run, window: int | None) -> int:
    """Elements of the mask that layers of a window share; 0 where none is made."""
    config = run.module.model.config
    if config.positions == "alibi":
        return int(config.n_heads * run.seq_len**2)
    seen_whole = window is None or window >= run.seq_len
    return 0 if seen_whole else int(run.seq_len**2)


def kinds_of_layers(config: TransformerConfig) -> list[list[int]]:
    """Layers that compute alike, together."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for layer in range(config.n_layers):
        kind = (config.layer_window(layer), config.has_value_embedding(layer))
        alike.setdefault((*kind, config.layer_rotation(layer)), []).append(layer)
    return list(alike.values())


def token_ids(run: Run) -> Tensor:
    """(B, T)."""
    return torch.zeros(run.micro_batch_size, run.seq_len, dtype=torch.long)
