"""A copy of a checkpoint in host memory, which training can no longer change."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def snapshot(checkpoint: Any) -> Any:
    """Copy every tensor to host memory; tensors that share memory share it in the copy.

    Of a tensor spread over ranks each copies the part it holds.
    Copies from a device are queued on it and waited for once.
    """
    storages: dict[tuple[torch.device, int], Tensor] = {}
    result = _copy(checkpoint, storages)
    for device in {device for device, _ in storages if device.type == "cuda"}:
        torch.cuda.synchronize(device)
    return result


def _copy(value: Any, storages: dict[tuple[torch.device, int], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return _copy_tensor(value, storages)
    if type(value) in (dict, OrderedDict):
        result = type(value)((key, _copy(item, storages)) for key, item in value.items())
        # A state dict carries the versions of its modules as an attribute.
        vars_of = getattr(value, "__dict__", None)
        if vars_of:
            result.__dict__.update(copy.deepcopy(vars_of))
        return result
    if type(value) in (list, tuple, set):
        return type(value)(_copy(item, storages) for item in value)
    return copy.deepcopy(value)


def _copy_tensor(tensor: Tensor, storages: dict[tuple[torch.device, int], Tensor]) -> Tensor:
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        # `from_local` would move it back to the mesh's device.
        local = _copy_tensor(tensor.to_local(), storages)
        return DTensor(local, tensor._spec, requires_grad=False)  # type: ignore[call-arg]
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
        return tensor.cpu().clone()
    source = tensor.untyped_storage()
    key = (tensor.device, source.data_ptr())
    if key not in storages:
        pinned = tensor.device.type == "cuda"
        host = torch.empty(source.nbytes(), dtype=torch.uint8, pin_memory=pinned)
        bytes_of_source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(source)
        storages[key] = host.copy_(bytes_of_source, non_blocking=pinned)
    twin = torch.empty(0, dtype=tensor.dtype)
    return twin.set_(
        storages[key].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )
