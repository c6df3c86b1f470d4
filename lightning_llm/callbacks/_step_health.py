"""Whether the gradients and losses of an optimizer step are numbers, told on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer


def step_health(
    losses: list[Tensor], gradients: list[Tensor], world_size: int, device: torch.device
) -> Tensor:
    """Return ``(3,) float32``, alike on all ranks: bad ranks, loss, and gradient norm.

    Nothing waits for the device. The loss is the mean over ranks; the norm is right up to a
    constant factor (sharded gradients that are also replicated count once per replica).

    Args:
        losses: Scalars, the micro-batches of the step; none where the module returned no loss, or
            calls ``loss.backward()`` itself. The loss is 0 then, and only gradients are judged.
        gradients: Of the parameters, after what the framework reduced; none if another part of the
            program checks them.
        world_size: Ranks that take part.
        device: Where the result is, if there are no losses.
    """
    loss = torch.stack(losses).float().sum() if losses else torch.zeros((), device=device)
    norms = _norms(gradients, world_size)
    squares = torch.stack(norms).square().sum() if norms else torch.zeros_like(loss)
    finite = loss.isfinite()
    if norms:
        finite = finite & torch.stack(norms).isfinite().all()
    health = torch.stack((1.0 - finite.float(), loss / world_size, squares))
    if world_size > 1:
        dist.all_reduce(health)
    health[2].sqrt_()
    return health


def _norms(gradients: list[Tensor], world_size: int) -> list[Tensor]:
    """Norm of each gradient's local part, scaled so that squares summed over ranks are right."""
    replicated, sharded = [], []
    for gradient in gradients:
        local = getattr(gradient, "_local_tensor", None)  # a DTensor
        if local is None:
            replicated.append(gradient)
        else:
            sharded.append(local)
    norms = list(torch._foreach_norm(sharded, 2, dtype=torch.float32)) if sharded else []
    if replicated:
        whole = torch._foreach_norm(replicated, 2, dtype=torch.float32)
        norms += torch._foreach_div(whole, world_size**0.5)
    return norms


class SpikeWindow:
    """The last accepted values, and whether new ones stand out; all on the device.

    A value is a spike when it exceeds mean + ``sigma`` standard deviations of the window. A
    deviation under 1 % of the mean counts as 1 %, so that a constant is no trap. Rejected steps
    leave a gap in the window: they are no measure for later ones.
    """

    def __init__(self, sigma: float, size: int) -> None:
        self.sigma, self.size = sigma, size
        self.values: Tensor | None = None  # (size, K), NaN where there is none
        self.position = 0

    def is_spike(self, values: Tensor) -> Tensor:
        """Whether any of the ``values (K,)`` stands out; a bool scalar on the device."""
        if self.values is None:
            self.values = torch.full((self.size, len(values)), torch.nan, device=values.device)
        self.values = self.values.to(values.device)
        known = self.values.isfinite()
        count = known.sum(0)
        mean = self.values.nan_to_num(0.0).sum(0) / count.clamp(min=1)
        squares = torch.where(known, (self.values - mean).square(), 0.0)
        deviation = (squares.sum(0) / count.clamp(min=1)).sqrt()
        limit = mean + self.sigma * torch.maximum(deviation, 0.01 * mean.abs())
        return ((values > limit) & (count >= max(2, self.size // 4))).any()

    def add(self, values: Tensor, rejected: Tensor) -> None:
        """Remember the values of a step that was not rejected."""
        assert self.values is not None
        self.values[self.position % self.size] = torch.where(rejected, torch.nan, values)
        self.position += 1


def not_finite(module: nn.Module, optimizers: Iterable[Optimizer]) -> Iterator[str]:
    """Names of weights and of optimizer states that hold a NaN or an infinity."""
    names: dict[Tensor, str] = {}
    for name, parameter in module.named_parameters():
        names[parameter] = name
        if not _finite(parameter):
            yield name
    for name, buffer in module.named_buffers():
        # A mask may well hold infinities.
        if buffer.is_floating_point() and bool(buffer.isnan().any()):
            yield name
    for optimizer in optimizers:
        for holder, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and not _finite(value):
                    yield f"the optimizer's {key} of {names.get(holder, 'a parameter')}"


def _finite(tensor: Tensor) -> bool:
    tensor = getattr(tensor, "_local_tensor", tensor).detach()
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
