"""AdamW with the defaults of language model training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Devices for which torch has a fused AdamW kernel: one pass over weights, gradients and moments.
_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu", "hpu"})


class AdamW(torch.optim.AdamW):
    """:class:`torch.optim.AdamW` (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).

    Differs in its defaults only: ``betas[1]`` is 0.95, so that the second moment forgets a loss
    spike within tens of steps (GPT-3, https://arxiv.org/abs/2005.14165, appendix B), and the fused
    kernel is used wherever every parameter's device has one, CPUs included.

    Args:
        params: parameters or parameter groups, e.g. of :func:`parameter_groups`.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay of the groups that do not set their own.
        fused: True or False to insist; None chooses.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        fused: bool | None = None,
    ) -> None:
        given: list[Any] = list(params)
        if fused is None:
            # torch takes None to mean foreach, so False is left to it as None.
            fused = can_fuse(_tensors(given)) or None
        beta1, beta2 = betas  # a list where they come from YAML
        super().__init__(
            given, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=fused
        )


def can_fuse(parameters: list[Tensor]) -> bool:
    """True where the fused kernel takes every parameter."""
    return all(
        parameter.is_floating_point() and parameter.device.type in _FUSED_DEVICES
        for parameter in parameters
    )


def _tensors(params: list[Any]) -> list[Tensor]:
    """The tensors of what an optimizer accepts: tensors, (name, tensor) pairs or groups."""
    found: list[Tensor] = []
    for item in params:
        if isinstance(item, dict):
            inner = item["params"]
            found += _tensors([inner] if isinstance(inner, Tensor) else list(inner))
        else:
            found.append(item[1] if isinstance(item, tuple) else item)
    return found
