"""Optimizer states by parameter name, and their way from whole tensors to shards and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.plugins.io.sharded import ShardedCheckpoint, optimizer_key
from lightning_llm.strategies.sharding import gathered


def named_state(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """State and groups of an optimizer with names in place of parameters; nothing is copied.

    Raises:
        TypeError: The optimizer keeps a tensor of which every rank has another part, but no
            ``DTensor``: nobody could tell the parts apart.
    """
    names: dict[Any, str] = {parameter: name for name, parameter in module.named_parameters()}
    state: dict[str, dict[str, Any]] = {}
    for parameter, own in optimizer.state.items():
        for key, value in own.items():
            plain = isinstance(value, Tensor) and not isinstance(value, DTensor)
            if plain and value.numel() > 1 and isinstance(parameter, DTensor):
                raise InvalidTypeError(
                    f"{type(optimizer).__name__} keeps {key!r} of {names[parameter]} as a plain "
                    f"tensor beside a sharded parameter, so it cannot be saved; use an optimizer "
                    f"that makes its state with torch.zeros_like(parameter), or DDPStrategy"
                )
        state[names[parameter]] = dict(own)
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {"state": state, "param_groups": groups}


def whole_state(optimizer: Optimizer, module: nn.Module, *, keep: bool) -> dict[str, Any]:
    """What ``optimizer.state_dict()`` gives without sharding, on the host; all ranks call it.

    Args:
        optimizer: Of the module's parameters.
        module: The module.
        keep: False for a rank that only takes part.
    """
    named = named_state(optimizer, module)
    state: dict[int, dict[str, Any]] = {}
    groups, position = [], 0
    for group in named["param_groups"]:
        names = group["params"]
        for place, name in enumerate(names, start=position):
            if name in named["state"]:
                own = named["state"][name].items()
                state[place] = {key: gathered(value, keep=keep) for key, value in own}
        groups.append({**group, "params": list(range(position, position + len(names)))})
        position += len(names)
    return {"state": state, "param_groups": groups} if keep else {}


def without_tensors(named: dict[str, Any], index: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a named state into plain data, and tensors under their names in a sharded checkpoint.

    Args:
        named: From `named_state`.
        index: Of the optimizer.
    """
    plain: dict[str, dict[str, Any]] = {}
    keys: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, own in named["state"].items():
        keys[name] = [key for key, value in own.items() if isinstance(value, Tensor)]
        plain[name] = {key: value for key, value in own.items() if key not in keys[name]}
        tensors |= {optimizer_key(index, name, key): own[key].detach() for key in keys[name]}
    return {"state": plain, "tensors": keys, "param_groups": named["param_groups"]}, tensors


def restore_from_shards(
    optimizer: Optimizer, module: nn.Module, source: ShardedCheckpoint, index: int
) -> None:
    """Load an optimizer's state from a folder; each rank reads the shards it holds.

    Raises:
        ValueError: The optimizer has other parameters or groups than the saved one.
    """
    saved = source.plain["optimizer_states"][index]
    parameters = dict(module.named_parameters())
    targets: dict[str, Tensor] = {}
    state: dict[str, dict[str, Any]] = {name: dict(own) for name, own in saved["state"].items()}
    for name, keys in saved["tensors"].items():
        if name not in parameters:
            raise InvalidValueError(
                f"{source.path} has a state of {name}, which is no parameter here"
            )
        for key in keys:
            entry = source.tensors[optimizer_key(index, name, key)]
            empty = _empty_like_stored(parameters[name], entry.size, entry.properties.dtype)
            targets[optimizer_key(index, name, key)] = state[name][key] = empty
    source.load(targets)
    _load(optimizer, module, saved["param_groups"], state.get, str(source.path))


def restore_from_whole(optimizer: Optimizer, module: nn.Module, saved: dict[str, Any]) -> None:
    """Load what ``optimizer.state_dict()`` gave without sharding.

    Raises:
        ValueError: The optimizer has other parameters or groups than the saved one.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    theirs = [place for group in saved["param_groups"] for place in group["params"]]
    if len(ours) != len(theirs):
        raise InvalidValueError(
            f"the checkpoint's optimizer has {len(theirs)} parameters, this one {len(ours)}"
        )
    by_name: dict[str, dict[str, Any]] = {}
    for parameter, place in zip(ours, theirs, strict=True):
        own = saved["state"].get(place)
        if own is not None:
            by_name[names[parameter]] = {key: _as_stored(parameter, v) for key, v in own.items()}
    lookup = {place: names[parameter] for parameter, place in zip(ours, theirs, strict=True)}
    groups = [
        {**group, "params": [lookup[place] for place in group["params"]]}
        for group in saved["param_groups"]
    ]
    _load(optimizer, module, groups, by_name.get, "the checkpoint")


def copy_whole(target: Tensor, value: Tensor) -> None:
    """Fill a tensor, or this rank's shard of it, from a whole one."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            target.to_local().copy_(_sharded(value, target).to_local())
        else:
            target.copy_(value)


def _load(
    optimizer: Optimizer,
    module: nn.Module,
    saved_groups: list[dict[str, Any]],
    state_of: Callable[[str], dict[str, Any] | None],
    where: str,
) -> None:
    names = {parameter: name for name, parameter in module.named_parameters()}
    ours = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    theirs = [list(group["params"]) for group in saved_groups]
    if ours != theirs:
        differing = {name for group in ours for name in group}
        differing ^= {name for group in theirs for name in group}
        raise InvalidValueError(
            f"the optimizer has other parameter groups than that of {where}: sizes "
            f"{[len(group) for group in ours]} here, {[len(group) for group in theirs]} there; "
            f"names that differ: {sorted(differing)[:3]}"
        )
    state, groups, position = {}, [], 0
    for group in saved_groups:
        places = list(range(position, position + len(group["params"])))
        for place, name in zip(places, group["params"], strict=True):
            own = state_of(name)
            if own:
                state[place] = own
        groups.append({**group, "params": places})
        position += len(places)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _empty_like_stored(parameter: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    if size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype)
    return torch.empty(size, dtype=dtype)


def _as_stored(parameter: Tensor, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        filled = torch.zeros_like(parameter, dtype=value.dtype)
        copy_whole(filled, value)
        return filled
    return value.to(parameter.device, copy=True)


def _sharded(value: Tensor, like: DTensor) -> DTensor:
    """This rank's shard, cut locally: every rank has the whole value."""
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
