"""bfloat16 weights whose updates are not lost to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from lightning_llm.errors import InvalidValueError
from lightning_llm.plugins.precision.rounding import round_stochastically

Mode = Literal["master", "stochastic_rounding"]


class Pair(NamedTuple):
    """A bfloat16 weight of the module, and what the optimizer updates in its place."""

    weight: nn.Parameter
    master: nn.Parameter


class MasterWeightsPrecision(Precision):
    """Weights and activations in bfloat16, optimizer updates in float32.

    A bfloat16 number has 8 significant bits: an update smaller than 1/512 of a weight rounds to
    nothing, which is most updates late in training. The optimizer is therefore given float32
    tensors, in ``param_groups`` and with float32 moments, whatever the optimizer is:

    - ``"master"``: they are kept, 4 bytes per parameter; the weights are their rounded copy.
    - ``"stochastic_rounding"``: they exist during the optimizer step only; the updated value is
      rounded up or down at random, right on average. All ranks draw the same noise, and a resumed
      run draws what the uninterrupted one would have.

    Gradients accumulate in float32 where torch can do that without DDP; under DDP they are
    bfloat16, as is their reduction, which halves its bytes. In bytes per parameter, with AdamW:
    float32 and autocast 16 and the converted copy, ``"master"`` 18 (2 + 4 + 4 + 8),
    ``"stochastic_rounding"`` 14, and 4 more during the step.

    Only parameters are converted. Buffers keep their dtype, so rotary tables stay float32; norms
    compute in float32 from a bfloat16 scale. When the trainer is done the module gets its float32
    weights back.

    A checkpoint holds the weights in bfloat16, which load anywhere, and the masters beside them,
    so that a resumed run continues bit for bit.

    Args:
        mode: See above.
        seed: Of the random rounding.

    Raises:
        ValueError: ``mode`` is unknown.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[MasterWeightsPrecision()])
    """

    precision = "bf16-true"

    def __init__(self, mode: Mode = "master", *, seed: int = 0) -> None:
        if mode not in get_args(Mode):
            raise InvalidValueError(f"mode={mode!r} must be one of {get_args(Mode)}")
        self.mode = mode
        self.seed = seed
        self._steps = 0  # optimizer steps rounded so far, which seed the noise
        self._pairs: dict[str, Pair] = {}
        self._dtypes: list[tuple[nn.Parameter, torch.dtype]] = []
        self._masters_are_kept = True

    @property
    def description(self) -> str:
        """What is kept in what, for people."""
        if self.mode == "master":
            return "bf16 weights with float32 masters"
        return "bf16 weights rounded stochastically"

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        """Makes the parameters bfloat16 in place, and keeps what trainable ones were.

        Raises:
            ValueError: The parameters are sharded.
        """
        self.teardown()  # what an interrupted run may have left
        for name, parameter in module.named_parameters():
            if not parameter.is_floating_point():
                continue
            if type(parameter.data).__name__ == "DTensor":
                raise InvalidValueError(
                    f"MasterWeightsPrecision cannot hold the sharded parameter {name}; with FSDP "
                    f"keep float32 parameters and give it a bfloat16 mixed precision policy"
                )
            self._dtypes.append((parameter, parameter.dtype))
            if parameter.requires_grad:
                master = nn.Parameter(parameter.detach().float())
                self._pairs[name] = Pair(parameter, master)
            parameter.data = parameter.detach().to(torch.bfloat16)
        return module

    @override
    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Gives the optimizers float32 tensors in place of the module's parameters."""
        replicated = isinstance(model, DistributedDataParallel)
        for weight, master in self._pairs.values():
            master.data = master.data.to(weight.device)
            if replicated:  # the weights are alike on all ranks by now, the masters need not be
                torch.distributed.broadcast(master.data, src=0)
            elif hasattr(weight, "grad_dtype"):
                weight.grad_dtype = torch.float32
        masters = {id(weight): master for weight, master in self._pairs.values()}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [masters.get(id(p), p) for p in group["params"]]
            for parameter in [p for p in optimizer.state if id(p) in masters]:
                state = optimizer.state.pop(parameter)
                optimizer.state[masters[id(parameter)]] = state
        self._masters_are_kept = not optimizers or self.mode == "master"
        if not self._masters_are_kept:
            for pair in self._pairs.values():
                # Memory of its own: somebody may still look at what the parameter was.
                pair.master.data = torch.empty_like(pair.master)
                _release(pair.master)
        return super().connect(model, optimizers, lr_schedulers)

    @override
    def _after_closure(self, model: L.LightningModule, optimizer: Any) -> None:
        """Hands the gradients to the masters, before hooks and clipping look at them."""
        pairs = self._pairs_of(optimizer)
        if not self._masters_are_kept:
            for pair in pairs:
                _materialise(pair)
        for weight, master in pairs:
            gradient = weight.grad
            # A float32 gradient is shared, not copied: what scales one scales the other.
            master.grad = None if gradient is None else gradient.to(torch.float32)
        super()._after_closure(model, optimizer)

    @override
    def optimizer_step(  # type: ignore[override]
        self,
        optimizer: Any,
        model: L.LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """Steps the masters and rounds them into the weights."""
        result = super().optimizer_step(optimizer, model, closure, **kwargs)
        pairs = self._pairs_of(optimizer)
        with torch.no_grad():
            if self._masters_are_kept:
                torch._foreach_copy_([w for w, _ in pairs], [m for _, m in pairs])
            else:
                self._round(pairs)
        for weight, master in pairs:
            weight.grad = master.grad = None
        return result

    def _pairs_of(self, optimizer: Any) -> list[Pair]:
        """The pairs whose masters an optimizer holds."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [pair for pair in self._pairs.values() if id(pair.master) in held]

    def _round(self, pairs: list[Pair]) -> None:
        """Rounds masters into their weights with the noise of this step, and frees them."""
        generators: dict[torch.device, torch.Generator] = {}
        for weight, master in pairs:
            device = weight.device
            if device not in generators:
                generators[device] = torch.Generator(device)
                generators[device].manual_seed(self.seed * 1_000_003 + self._steps)
            weight.copy_(round_stochastically(master, generators[device]))
            _release(master)
        self._steps += 1

    @override
    def state_dict(self) -> dict[str, Any]:
        """The masters by parameter name, or the position in the noise."""
        if not self._pairs:
            return {}
        if not self._masters_are_kept:
            return {"mode": self.mode, "steps": self._steps}
        masters = {name: pair.master.detach() for name, pair in self._pairs.items()}
        return {"mode": self.mode, "masters": masters}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave; the other mode starts from the loaded weights.

        Raises:
            ValueError: The masters are those of another model.
        """
        self._steps = state_dict.get("steps", 0)
        masters: dict[str, Tensor] = state_dict.get("masters", {})
        if self.mode != "master" or not masters:
            return
        if masters.keys() != self._pairs.keys():
            differing = sorted(masters.keys() ^ self._pairs.keys())
            raise InvalidValueError(
                f"the checkpoint's master weights are of another model: {len(differing)} names "
                f"differ, such as {differing[:3]}"
            )
        for name, pair in self._pairs.items():
            pair.master.data.copy_(masters[name])

    @override
    def teardown(self) -> None:
        """Gives the parameters the dtype they came in, and the masters as their values."""
        for parameter, dtype in self._dtypes:
            parameter.data = parameter.detach().to(dtype)
        if self._masters_are_kept:
            for weight, master in self._pairs.values():
                weight.data = master.detach().to(weight.device, weight.dtype)
        self._pairs, self._dtypes = {}, []
        self._masters_are_kept = True


def _materialise(pair: Pair) -> None:
    """Gives a released master memory, and the value of its weight."""
    master = pair.master
    master.untyped_storage().resize_(master.numel() * master.element_size())
    master.data.copy_(pair.weight.detach())


def _release(master: nn.Parameter) -> None:
    """Frees the memory of a tensor that keeps its shape and its place in the optimizer."""
    master.untyped_storage().resize_(0)
