"""Layers of a run's model on fake tensors, which have shapes and no values, ready to be called.

Shapes: B batch, T sequence, L its tokens that a rank computes or splits layers at, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import lcm
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh

from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.models.block import Block
from lightning_llm.models.context import ContextShard
from lightning_llm.planning.pretended_ranks import pretended_ranks
from lightning_llm.planning.run import Run
from lightning_llm.strategies.context_parallel import ContextParallel
from lightning_llm.strategies.tensor_parallel import TensorParallel


@dataclass(frozen=True)
class Sharing:
    """Ranks that compute the same rows together.

    Attributes:
        layers: Those that share every layer; None where none do.
        sequences: Those that share every sequence; None where none do.
    """

    layers: DeviceMesh | None = None
    sequences: ContextShard | None = None

    def __bool__(self) -> bool:
        return self.layers is not None or self.sequences is not None


class _FakeShard(ContextShard):
    """Without the rule for later keys, which takes no memory on an accelerator as here it would."""

    def prepare(self, length: int) -> None:
        """Nothing to make."""

    def causal(self, n_queries: int, n_keys: int) -> Any:
        """None: shapes are the same without it."""


@contextmanager
def fake_arithmetic(run: Run) -> Iterator[Sharing]:
    """Within, tensors are fake; yields the ranks that the layers are computed by.

    Raises:
        ValueError: Sequences are to be shared that cannot be shared.
    """
    tensor, context = run.parallelism.tensor, run.parallelism.context
    shared = tensor * context > 1
    ranks: Any = pretended_ranks(1, context, tensor) if shared else nullcontext()
    with ranks as mesh:
        sharing = Sharing()
        if shared:
            sequences = mesh["data_parallel"]
            if context > 1:
                ContextParallel(run.module, sequences).undo()  # refuses what it cannot share
            sharing = Sharing(
                layers=mesh["tensor_parallel"] if tensor > 1 else None,
                sequences=_FakeShard(sequences) if context > 1 else None,
            )
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield sharing


def autocast(run: Run) -> Any:
    """The context that a forward pass of the run is in."""
    if not run.numerics.autocast:
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def fake_block(run: Run, layer: int, sharing: Sharing) -> nn.Module:
    """A block as a rank computes it: its share of split layers, in the dtype of the arithmetic."""
    network = _fake_network(run, layer)
    block = network.blocks[0]
    if sharing.layers is not None:
        TensorParallel(nn.ModuleList([network]), sharing.layers).split(block)
    block._forward_pre_hooks.clear()  # of the first block alone
    cast(Any, block).attention.context = sharing.sequences
    return block


def fake_network(run: Run, sharing: Sharing) -> Transformer:
    """A network of ranks that share, whose blocks do nothing, with whatever is around them."""
    network = _fake_network(run, 0)
    block = network.blocks[0]
    if sharing.layers is not None:
        holder = nn.ModuleList([network])
        split = TensorParallel(holder, sharing.layers)
        split.split(block)
        split.split(holder)
    network.context = sharing.sequences
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
    tensor, context = run.parallelism.tensor, run.parallelism.context
    whole = _extents(run.module.model.config)
    taken = whole | {extent // tensor for extent in whole}
    unit = sequence_multiple(tensor, context)
    length = run.seq_len
    while True:
        length += unit
        own = length // context
        chunk = own if context == 1 else own // 2  # of queries, for which attention is called
        if chunk % 64 and not taken & {length, own, own // tensor, chunk}:
            return length


def sequence_multiple(tensor: int, context: int) -> int:
    """What the tokens of a sequence must be a multiple of, to be shared by so many ranks."""
    return tensor if context == 1 else context * lcm(2, tensor)


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
    rows, computed = run.micro_batch_size, length // run.parallelism.context
    own = computed // run.parallelism.tensor
    x = torch.empty(rows, own, config.dim, dtype=run.param_dtype, requires_grad=True)
    cos = sin = mask = values = start = None
    if config.layer_rotation(layer) is not None:
        shape = (1, computed, 1, 1, config.rotary_dim // 2)
        cos, sin = torch.empty(shape), torch.empty(shape)
    if mask_elements(run, config.layer_window(layer)):
        heads = config.n_heads if config.positions == "alibi" else 1
        apart = rows if run.documents else 1
        mask = torch.empty(apart, heads, computed, length, dtype=run.numerics.compute)
    if config.residual_scalars:
        start = torch.empty_like(x)
    if config.has_value_embedding(layer):
        width = config.n_kv_heads * config.head_dim
        values = torch.empty(*x.shape[:2], width, dtype=x.dtype, requires_grad=True)
    return [x, cos, sin, mask, None, start, values]


def mask_elements(run: Run, window: int | None) -> int:
    """Elements of the mask that layers of a window share; 0 where none is made."""
    config = run.module.model.config
    seen_whole = window is None or window >= run.seq_len
    if config.positions != "alibi" and seen_whole and not run.documents:
        return 0
    heads = config.n_heads if config.positions == "alibi" else 1
    rows = run.micro_batch_size if run.documents else 1
    return int(rows * heads * run.positions * run.seq_len)


def kinds_of_layers(config: TransformerConfig) -> list[list[int]]:
    """Layers that compute alike, together."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for layer in range(config.n_layers):
        kind = (config.layer_window(layer), config.has_value_embedding(layer))
        alike.setdefault((*kind, config.layer_rotation(layer)), []).append(layer)
    return list(alike.values())


def network_inputs(run: Run) -> dict[str, Any]:
    """What a network is called with: of this rank's positions, (B, L) each."""
    ids = torch.zeros(run.micro_batch_size, run.positions, dtype=torch.long)
    inputs = {"input_ids": ids}
    if run.documents:
        inputs["document_ids"] = torch.zeros_like(ids)
    return inputs
