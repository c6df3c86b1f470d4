"""Shards the parameters of a module over ranks, block by block, and gathers them for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from lightning_llm.errors import InvalidValueError
from lightning_llm.models.drawn_later import given_by_first_rank

_MOST_PADDING = 1.1  # of a weight

# Modules whose weights are whole at the moment.
_whole: WeakSet[nn.Module] = WeakSet()


def shard(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    device: torch.device,
    *,
    reshard_after_forward: bool | int = True,
    split: Callable[[nn.Module], None] | None = None,
    mesh: DeviceMesh,
    **options: Any,
) -> None:
    """Shard every block on its own, and what is left with the module.

    The weights are those of the first rank, whatever the others drew. Weights on the meta device
    are drawn here, on the host, in the order of ``modules()``: the order in which the module's
    construction would have drawn them; nothing is, where the first rank read pretrained ones. On
    the way one block at a time is whole, and what belongs to no block.

    Args:
        module: The root; its state-dict keys do not change.
        blocks: Parts of it, none inside another.
        device: Where whole weights live.
        reshard_after_forward: Of the blocks; see ``torch.distributed.fsdp.fully_shard``. The rest
            stays whole from the forward to the backward pass of a step.
        split: Called with every part that is about to be sharded: splits its layers over ranks.
        mesh: Of the ranks; the last dimension is the one that weights are spread over.
        **options: Passed to ``fully_shard``: precision and offload policies.

    Raises:
        ValueError: A part on the meta device cannot draw its weights.
    """
    inside = set(blocks)
    drawn: dict[int, tuple[Tensor, Tensor]] = {}
    seen: set[nn.Module] = set()
    given = given_by_first_rank(module)
    place = placements(mesh.shape[-1], reshard_after_forward)

    def visit(part: nn.Module) -> None:
        if part in seen:
            return
        seen.add(part)
        _materialise(part, drawn, draws=not given)
        for child in part.children():
            visit(child)
        if part in inside:
            _take_from_first_rank(part, device)
            if split is not None:
                split(part)
            fully_shard(
                part,
                reshard_after_forward=reshard_after_forward,
                shard_placement_fn=place,
                mesh=mesh,
                **options,
            )

    visit(module)
    _take_from_first_rank(module, device)
    if split is not None:
        split(module)
    fully_shard(module, shard_placement_fn=place, mesh=mesh, **options)
    # The first forward makes the module that runs it the root; a block may well run before.
    cast(Any, module)._get_fsdp_state()._lazy_init()


def placements(
    ranks: int, reshard_after_forward: bool | int
) -> Callable[[nn.Parameter], Shard | None] | None:
    """The ``shard_placement_fn`` of ``fully_shard`` for weights spread over ``ranks``.

    None where they stay spread over some of the ranks after the forward pass, which torch does by
    the first dimension.
    """
    return None if type(reshard_after_forward) is int else partial(placement, ranks=ranks)


def placement(weight: nn.Parameter, ranks: int) -> Shard | None:
    """Which dimension ``fully_shard`` cuts; None: the first, as ever.

    The first is padded to a multiple of the ranks. Where that would add much, as to the experts of
    a mixture, of which there are fewer than ranks, a later one that divides takes its place.
    """
    padded = -(-weight.shape[0] // ranks) * ranks
    if padded <= _MOST_PADDING * weight.shape[0]:
        return None
    placements = weight.placements if isinstance(weight, DTensor) else ()
    taken = {kind.dim for kind in placements if isinstance(kind, Shard)}
    for dim in range(1, weight.ndim):
        if dim not in taken and weight.shape[dim] % ranks == 0:
            return Shard(dim)
    return None


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's weights are spread over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def sharded_parts(module: nn.Module) -> list[Any]:
    """The parts that are sharded on their own, the module itself among them."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def set_prefetch(blocks: Sequence[nn.Module], count: int) -> None:
    """Gather the weights of the next blocks, in the order of each pass, while one computes."""
    order: list[Any] = list(blocks)
    for place, block in enumerate(order):
        block.set_modules_to_forward_prefetch(order[place + 1 : place + 1 + count])
        block.set_modules_to_backward_prefetch(order[max(0, place - count) : place][::-1])


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Give every rank all weights, so that within it may run the module on its own.

    Generation runs a block once per token, and ranks need not generate alike: gathered once, it
    costs one exchange, and no rank waits for another. All ranks enter together. The weights have
    the dtype of the arithmetic; what is done to them is lost.

    A module that is not sharded, or whole already, is left alone.
    """
    parts = sharded_parts(module)
    if not parts or module in _whole:
        yield
        return
    groups = [group for part in parts for group in part._get_fsdp_state()._fsdp_param_groups]
    kept = [group.post_forward_mesh_info for group in groups]
    _whole.add(module)
    try:
        # Memory taken in inference mode could never be trained on.
        with torch.inference_mode(False), torch.no_grad():
            for part in parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
        yield
    finally:
        _whole.discard(module)
        for group, mesh_info in zip(groups, kept, strict=True):
            group.post_forward_mesh_info = mesh_info
        for part in parts:
            part.reshard()


@contextmanager
def outer_weights(module: nn.Module) -> Iterator[None]:
    """Give every rank the weights that are in no block, so that a part of the module may run.

    Blocks gather theirs as they run, one after the other. All ranks enter together and run the
    same. A module that is not sharded is left alone.
    """
    parts = sharded_parts(module)
    root: Any = module
    if module not in parts:
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        root.unshard()
    try:
        yield
    finally:
        root.reshard()


def gathered_state(module: nn.Module, *, first_rank_only: bool = True) -> dict[str, Any]:
    """The state dict with whole tensors on the host, in the dtype they are stored in.

    All ranks call it; one tensor at a time is gathered. With ``first_rank_only`` the others get an
    empty dictionary.
    """
    keep = not first_rank_only or not dist.is_initialized() or dist.get_rank() == 0
    state = {}
    for name, value in module.state_dict().items():
        value = gathered(value, keep=keep)
        if keep:
            state[name] = value
    return state


def gathered(value: Any, *, keep: bool) -> Any:
    """A tensor whole on the host, or None where it is not to be kept."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu() if keep else None


def _materialise(part: nn.Module, drawn: dict[int, tuple[Tensor, Tensor]], *, draws: bool) -> None:
    """Give the part's own weights memory, and values if it ``draws``; shared ones get one."""
    stores: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
    on_meta = [
        (store, name, value)
        for store in stores
        for name, value in store.items()
        if value is not None and value.is_meta
    ]
    if not on_meta:
        return
    draw = getattr(part, "reset_parameters", None)
    if draws and not callable(draw):
        raise InvalidValueError(
            f"{type(part).__name__} has {[name for _, name, _ in on_meta]} on the meta device and "
            f"no reset_parameters() to draw them: give it one, or build the module on the CPU"
        )
    fresh = False
    for store, name, value in on_meta:
        if id(value) not in drawn:
            memory: Tensor = torch.empty_like(value, device="cpu")
            if isinstance(value, nn.Parameter):
                memory = nn.Parameter(memory, requires_grad=value.requires_grad)
            drawn[id(value)] = value, memory  # the first keeps the identity from being reused
            fresh = True
        store[name] = drawn[id(value)][1]
    if fresh and draws and draw is not None:
        draw()


def _take_from_first_rank(part: nn.Module, device: torch.device) -> None:
    """Move what is not sharded yet to the device, as the first rank has it."""
    tensors: dict[int, Tensor] = {}
    for value in [*part.parameters(), *part.buffers()]:
        if not isinstance(value, DTensor):
            tensors[id(value)] = value
    with torch.no_grad():
        for value in tensors.values():
            value.data = value.data.to(device).contiguous()
            dist.broadcast(value.data, src=0)
