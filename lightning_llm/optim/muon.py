"""Muon for the hidden matrices and AdamW for everything else, in one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_llm.errors import InvalidValueError
from lightning_llm.optim.adamw import can_fuse
from lightning_llm.optim.matrix_parts import join_parts, local_shard, split_parts, whole
from lightning_llm.optim.orthogonalize import (
    Method,
    orthogonalize,
    product_dtype,
    step_coefficients,
)

# Matrices of one shape go through the products together, up to this many elements: enough to fill
# a GPU, and a bound on the few temporary copies that the products need.
_STACK_ELEMENTS = 2**26


class Muon(torch.optim.Optimizer):
    r"""Momentum whose matrices are orthogonalized before they are applied.

    With the gradient :math:`G` of a weight matrix :math:`W` of shape :math:`(R, C)`:

    .. math::
        B &\leftarrow \mu B + (1 - \mu) G \\
        O &= \mathrm{polar}((1 - \mu) G + \mu B) \\
        W &\leftarrow (1 - \eta \lambda) W - \eta s O

    where :math:`s = 0.2 \sqrt{\max(R, C)}` gives the update the root mean square of a typical AdamW
    update, so that learning rate and weight decay carry over from AdamW (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982); with ``match_rms_adamw=False``,
    :math:`s = \sqrt{\max(1, R / C)}` as in Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon.

    Groups whose ``kind`` is ``"matrix"`` are updated so; embeddings, heads and vectors by AdamW.
    A group's own ``use_muon`` beats its kind. Weights of three dimensions are stacks of matrices
    (experts). A group with ``qkv_heads`` holds fused projections, whose query, key and value parts
    are orthogonalized each on its own; other fused weights are taken as they are. Sharded weights
    (``DTensor``) are gathered, one stack at a time, and every rank computes the same update.

    Args:
        params: groups of :func:`~lightning_llm.optim.parameter_groups`, or of your own with
            ``use_muon``.
        lr: learning rate of every group without its own.
        momentum: :math:`\mu`.
        nesterov: False orthogonalizes :math:`B` alone.
        weight_decay: decoupled weight decay of the groups that do not set their own.
        match_rms_adamw: scale of the update, see above.
        method: ``"polar_express"`` or ``"newton_schulz"``.
        steps: polynomial steps of the method.
        adamw_lr: learning rate of the groups without Muon and without their own; None means ``lr``.
        betas: decay of the moments in AdamW.
        eps: epsilon of AdamW.

    Raises:
        ValueError: an argument is out of range, a group says neither ``kind`` nor ``use_muon``, or
            Muon is asked to update something that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        match_rms_adamw: bool = True,
        method: Method = "polar_express",
        steps: int = 5,
        adamw_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        beta1, beta2 = betas
        _check_options(lr, adamw_lr, momentum, weight_decay, method, steps, beta1, beta2, eps)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "match_rms_adamw": match_rms_adamw,
            "method": method,
            "steps": steps,
            "betas": (beta1, beta2),
            "eps": eps,
        }
        groups = [_with_update_rule(group) for group in params]
        if adamw_lr is not None:
            groups = [group if group["use_muon"] else {"lr": adamw_lr} | group for group in groups]
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; see the class for what it must say."""
        super().add_param_group(_with_update_rule(param_group))
        group = self.param_groups[-1]
        if not group["use_muon"]:
            group["fused"] = can_fuse(group["params"])
            return
        for parameter in group["params"]:
            if parameter.ndim not in (2, 3):
                self.param_groups.pop()
                raise InvalidValueError(
                    f"Muon updates matrices (R, C) and stacks of them (K, R, C), got a parameter "
                    f"of shape {tuple(parameter.shape)}; put it into a group with use_muon=False"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every parameter that has a gradient.

        Args:
            closure: evaluates the loss again, with gradients.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["use_muon"]:
                self._muon_step(group, parameters)
            elif parameters:
                self._adamw_step(group, parameters)
        return loss

    def _muon_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [_gradient(parameter) for parameter in parameters]
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
        updates: Any = buffers
        if group["nesterov"]:
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        directions = _orthogonalized(updates, group)
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def _adamw_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        fused = group["fused"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # The fused kernel counts on the device, the others on the host.
                device = parameter.device if fused else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [_gradient(parameter) for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=None,
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _orthogonalized(updates: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Scaled polar factors of momentum matrices, computed in stacks of equal shape."""
    coefficients = step_coefficients(group["method"], group["steps"])
    parts: list[Tensor] = []
    owners: list[slice] = []
    for update in updates:
        own = split_parts(whole(update), group.get("qkv_heads"))
        owners.append(slice(len(parts), len(parts) + len(own)))
        parts += own

    by_shape: dict[tuple[torch.Size, torch.device], list[int]] = {}
    for index, part in enumerate(parts):
        by_shape.setdefault((part.shape, part.device), []).append(index)
    for (shape, device), indices in by_shape.items():
        scale = _update_scale(shape, group["match_rms_adamw"])
        dtype = product_dtype(device.type)
        step = max(1, _STACK_ELEMENTS // shape.numel())
        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]
            stack = torch.stack([parts[index] for index in chosen])
            result = orthogonalize(stack, coefficients, dtype).mul_(scale).to(stack.dtype)
            for index, matrix in zip(chosen, result.unbind(), strict=True):
                parts[index] = matrix

    return [
        local_shard(join_parts(parts[owner], update.shape, group.get("qkv_heads")), update)
        for update, owner in zip(updates, owners, strict=True)
    ]


def _update_scale(shape: torch.Size, match_rms_adamw: bool) -> float:
    rows, columns = shape
    if match_rms_adamw:
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise InvalidValueError("Muon takes dense gradients; build the embedding with sparse=False")
    return gradient


def _with_update_rule(group: Any) -> dict[str, Any]:
    """A copy of a group that says ``use_muon``."""
    if not isinstance(group, dict) or not ("use_muon" in group or "kind" in group):
        raise InvalidValueError(
            "Muon must know which parameters are hidden matrices: pass "
            "parameter_groups(module), or groups with use_muon=True or False"
        )
    return {"use_muon": group.get("kind") == "matrix"} | group


def _check_options(
    lr: float,
    adamw_lr: float | None,
    momentum: float,
    weight_decay: float,
    method: str,
    steps: int,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    problems = [
        f"{name}={value} must be a float that is not negative"
        for name, value in (
            ("lr", lr),
            ("adamw_lr", adamw_lr),
            ("weight_decay", weight_decay),
            ("eps", eps),
        )
        if value is not None and (isinstance(value, Tensor) or not value >= 0.0)
    ]
    problems += [
        f"{name}={value} must be in [0, 1)"
        for name, value in (("momentum", momentum), ("betas[0]", beta1), ("betas[1]", beta2))
        if not 0.0 <= value < 1.0
    ]
    if method not in get_args(Method):
        problems.append(f"method={method!r} must be one of {get_args(Method)}")
    if steps < 1:
        problems.append(f"steps={steps} must be at least 1")
    if problems:
        raise InvalidValueError("Muon: " + "; ".join(problems))
