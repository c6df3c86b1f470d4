"""What a forward pass leaves in memory for the backward pass, found by running it on nothing.

A block is run once on fake tensors, which have shapes and no values, through the very code that
checkpoints it; what is still referenced afterwards is what training keeps.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_llm.models import TransformerConfig
from lightning_llm.models.block import Block
from lightning_llm.planning.run import Run
from lightning_llm.strategies.checkpointing import (
    ActivationCheckpointing,
    call_plain,
    checkpointed,
)

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_grouped_mm", "looped_linear"}
_ATTENTION = "_scaled_dot_product"
MODES: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Activations:
    """Bytes kept by one forward pass of one micro-batch.

    Attributes:
        tokens: Grow with the batch: of all blocks, embedding and last norm.
        weight_copies: Converted weights that autocast keeps for the backward pass.
        masks: Attention masks, which the layers share.
        largest_block: Of the block that keeps most without checkpointing: what exists again while
            one is repeated.
    """

    tokens: float
    weight_copies: float
    masks: float
    largest_block: float

    @property
    def kept(self) -> float:
        """All that lives from forward to backward."""
        return self.tokens + self.weight_copies + self.masks


def trace_activations(run: Run, mode: ActivationCheckpointing) -> Activations:
    """Activations of a run's ``CausalLM`` under a mode of checkpointing."""
    model = run.module.model
    config: TransformerConfig = model.config
    repeats: dict[tuple[Any, ...], list[int]] = {}
    for layer in range(config.n_layers):
        kind = (config.layer_window(layer), config.has_value_embedding(layer))
        repeats.setdefault((*kind, config.layer_rotation(layer)), []).append(layer)
    tokens = copies = largest = 0.0
    windows = {config.layer_window(layer) for layer in range(config.n_layers)}
    for layers in repeats.values():
        kept = _trace_block(run, layers[0], mode)
        plain = kept if mode == "none" else _trace_block(run, layers[0], "none")
        tokens += kept[0] * len(layers)
        copies += kept[1] * len(layers)
        largest = max(largest, sum(plain))
    # The embedding's output, which blocks do not make; the last norm's output, and its scale.
    ends = run.tokens_per_rank * config.dim * (run.param_dtype.itemsize + 4)
    masks = sum(_mask_elements(run, window) for window in windows) * run.numerics.compute.itemsize
    return Activations(tokens + ends, copies, masks, largest)


def _mask_elements(run: Run, window: int | None) -> int:
    config = run.module.model.config
    if config.positions == "alibi":
        return int(config.n_heads * run.seq_len**2)
    seen_whole = window is None or window >= run.seq_len
    return 0 if seen_whole else int(run.seq_len**2)


def _trace_block(run: Run, layer: int, mode: ActivationCheckpointing) -> tuple[float, float]:
    """Bytes that one call of a block leaves behind: that grow with the tokens, and of weights."""
    config = run.module.model.config
    dtype = run.param_dtype
    # A length that no blocked kernel of the CPU takes, and that no weight has for a dimension.
    length = run.seq_len + 1
    while length % 64 == 0 or length in _extents(config):
        length += 1
    with torch.device("meta"):
        block = Block(config, layer)
    if run.numerics.float8 is not None:
        run.numerics.float8.convert_module(nn.ModuleList([block]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = _give_memory(block, dtype)
        x = torch.empty(run.micro_batch_size, length, config.dim, dtype=dtype, requires_grad=True)
        inputs = _block_inputs(run, layer, x, length)
        autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
        with _Living([x, *inputs, *weights]) as living:
            with autocast if run.numerics.autocast else nullcontext():
                result = checkpointed(call_plain, mode)(block, x, *inputs)
            found = living.storages(touched_only=run.parallelism.compile and mode == "none")
            output = result[0].untyped_storage()
            if all(storage is not output for storage, _ in found):
                found.append((output, result[0].shape))
    shapes = {tuple(weight.shape) for weight in weights}
    shapes |= {shape[::-1] for shape in shapes}
    grows = sum(s.nbytes() for s, shape in found if tuple(shape) not in shapes)
    fixed = sum(s.nbytes() for s, shape in found if tuple(shape) in shapes)
    return grows * run.seq_len / length, float(fixed)


def _extents(config: TransformerConfig) -> set[int]:
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    return {config.dim, config.hidden_dim or 0, rows, config.n_heads * config.head_dim}


def _give_memory(block: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Replace weights by fake ones of a dtype; return them."""
    for part in block.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                memory = torch.empty(value.shape, dtype=dtype)
                part._parameters[name] = nn.Parameter(memory, requires_grad=value.requires_grad)
    return list(block.parameters())


def _block_inputs(run: Run, layer: int, x: Tensor, length: int) -> list[Any]:
    """What a block is called with after ``x``; see ``Block.forward``."""
    config: TransformerConfig = run.module.model.config
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    cos = sin = mask = values = start = None
    if config.layer_rotation(layer) is not None:
        shape = (1, length, 1, 1, config.rotary_dim // 2)
        cos, sin = torch.empty(shape), torch.empty(shape)
    if _mask_elements(run, config.layer_window(layer)):
        heads = config.n_heads if config.positions == "alibi" else 1
        mask = torch.empty(1, heads, length, length, dtype=run.numerics.compute)
    if config.residual_scalars:
        start = torch.empty_like(x)
    if config.has_value_embedding(layer):
        width = config.n_kv_heads * config.head_dim
        values = torch.empty(*x.shape[:2], width, dtype=x.dtype, requires_grad=True)
    return [cos, sin, mask, None, start, values]


class _Living(TorchDispatchMode):
    """Notes the memory that operators return, to see which of it outlives the call.

    Args:
        known: Tensors whose memory does not count.
    """

    def __init__(self, known: list[Any]) -> None:
        super().__init__()
        self.known = [t.untyped_storage() for t in known if isinstance(t, Tensor)]
        self.seen: dict[int, tuple[weakref.ref[Any], torch.Size]] = {}
        self.touched: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        name = func.overloadpacket.__name__
        if name in _PRODUCTS or name.startswith(_ATTENTION):
            for tensor in tree_leaves((args, kwargs, result)):
                if isinstance(tensor, Tensor):
                    self.touched.add(id(tensor.untyped_storage()))
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = cast(Any, tensor.untyped_storage())
        entry = self.seen.get(id(storage))
        if entry is None or entry[0]() is None:
            self.touched.discard(id(storage))  # of another, which had this address
            self.seen[id(storage)] = (weakref.ref(storage), tensor.shape)

    def storages(self, *, touched_only: bool) -> list[tuple[Any, torch.Size]]:
        """Memory still referenced, with the shape it was made in.

        With ``touched_only``: what products and attention read or wrote. Compiled code computes
        the rest again from it.
        """
        known = {id(storage) for storage in self.known}
        found = []
        for key, (reference, shape) in self.seen.items():
            storage = reference()
            if storage is None or key in known or (touched_only and key not in self.touched):
                continue
            found.append((storage, shape))
        return found
