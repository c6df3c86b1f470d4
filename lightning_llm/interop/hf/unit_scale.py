"""A network at a scale at which every path of it shows in its output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def unit_scale(network: nn.Module) -> Iterator[None]:
    """Let linear layers and convolutions return numbers of the size of their inputs.

    Fresh weights are tiny (0.02) or zero, and a path that multiplies several of them, such as a
    gated convolution, then carries next to nothing: whether it carries anything cannot be told
    from the output. Within, outputs are multiplied by a constant that follows from the weight; of
    a weight of zeros the input is passed on. Which positions depend on which is not changed.
    """
    handles = [
        layer.register_forward_hook(_rescale) for layer in network.modules() if _is_linear(layer)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(layer: nn.Module) -> bool:
    # transformers has a linear layer of its own with the weight transposed, also called Conv1D.
    is_transposed = type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")
    return isinstance(layer, (nn.Linear, nn.Conv1d)) or is_transposed


def _rescale(layer: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
        return None
    weight = layer.weight
    is_transposed = not isinstance(layer, (nn.Linear, nn.Conv1d))
    fan_in = weight.shape[0] if is_transposed else weight[0].numel()
    spread = float(weight.detach().float().square().mean().sqrt()) * fan_in**0.5
    if spread > 0:
        return output / spread
    if isinstance(layer, nn.Conv1d):
        return None
    x = inputs[0]
    index = torch.arange(output.shape[-1], device=x.device) % x.shape[-1]
    return output + x[..., index].to(output.dtype)
