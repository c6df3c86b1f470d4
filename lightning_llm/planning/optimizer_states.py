"""What an optimizer keeps for each weight and computes, found by letting it step on nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_llm.errors import InvalidValueError


def optimizer_of(module: Any) -> Any:
    """The optimizer that a module configures.

    Raises:
        ValueError: It configures several, or none.
    """
    configured = module.configure_optimizers()
    if isinstance(configured, dict):
        configured = configured["optimizer"]
    if isinstance(configured, list | tuple) and len(configured) == 1:
        configured = configured[0]
    if not isinstance(configured, torch.optim.Optimizer):
        raise InvalidValueError(
            f"{type(module).__name__}.configure_optimizers() gave {type(configured).__name__}; a "
            f"plan needs exactly one optimizer"
        )
    return configured


def state_elements(optimizer: Any) -> dict[int, float]:
    """Elements of optimizer state per element of each parameter, by the parameter's identity.

    The optimizer takes one step on the meta device, where nothing is computed.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    elements = {}
    for parameter in parameters:
        parameter.grad = None
        own = optimizer.state.get(parameter, {}).values()
        kept = sum(value.numel() for value in own if isinstance(value, Tensor) and value.ndim)
        elements[id(parameter)] = kept / parameter.numel()
    optimizer.state.clear()
    return elements


def step_flops(optimizer: Any) -> int:
    """Operations of the matrix products of a step on whole weights, which every rank computes."""
    with FlopCounterMode(display=False) as counter:
        state_elements(optimizer)
    return counter.get_total_flops()
