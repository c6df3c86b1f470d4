"""bfloat16 weights whose updates are not lost to rounding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import update_wrapper
from types import MethodType
from typing import Any, Literal, get_args

import lightning.pytorch as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from lightning_llm.errors import InvalidValueError
from lightning_llm.plugins.precision.rounding import round_stochastically

Mode = Literal["master", "stochastic_rounding"]

# Whose code writes weights in ways that torch counts, if it does.
_KNOWN_PACKAGES = frozenset({"lightning_llm", "torch", "transformers", "peft"})
_KNOWN_CALLBACKS = frozenset(
    {
        callbacks.DeviceStatsMonitor,
        callbacks.EarlyStopping,
        callbacks.GradientAccumulationScheduler,
        callbacks.LearningRateMonitor,
        callbacks.ModelCheckpoint,
        callbacks.ModelSummary,
        callbacks.RichModelSummary,
        callbacks.RichProgressBar,
        callbacks.ThroughputMonitor,
        callbacks.Timer,
        callbacks.TQDMProgressBar,
    }
)


class _Weight:
    """A bfloat16 parameter of the module, and what an optimizer updates in its place.

    Attributes:
        name: In the module.
        index: In the order of the module, in which noise is drawn.
        parameter: The module's own.
        dtype: That it came in.
        master: float32; None for a parameter that no optimizer has updated yet.
        seen: Count of in-place changes and address when it was last its master's rounded value.
    """

    __slots__ = ("dtype", "index", "master", "name", "parameter", "seen")

    def __init__(self, name: str, index: int, parameter: nn.Parameter) -> None:
        self.name, self.index, self.parameter = name, index, parameter
        self.dtype = parameter.dtype
        self.master: nn.Parameter | None = None
        self.seen: tuple[int, int] | None = None

    def mark(self) -> tuple[int, int]:
        """What differs once the parameter was written to, other than through ``.data``."""
        return self.parameter._version, self.parameter.data_ptr()


class MasterWeightsPrecision(HalfPrecision):
    """Weights and activations in bfloat16, optimizer updates in float32.

    A bfloat16 number has 8 significant bits: an update smaller than 1/512 of a weight rounds to
    nothing, which is most updates late in training. During its step the optimizer is therefore
    given float32 tensors, its moments are float32, whatever the optimizer is, and the result is
    rounded into the weights:

    - ``"master"``: the float32 tensors are kept, 4 bytes per parameter; the weights are their
      rounded copy.
    - ``"stochastic_rounding"``: they exist during the optimizer step only; the updated value is
      rounded up or down at random, right on average. All ranks draw the same noise, and a resumed
      run draws what the uninterrupted one would have.

    Outside its step an optimizer holds the module's own parameters, as without this plugin: what is
    done through them (``zero_grad``, ``toggle_optimizer``, clipping, gradients added up by hand,
    new parameter groups) needs nothing special, in automatic and in manual optimization. A weight
    that was replaced since the last step, by an average, a checkpoint or a hand-written clamp, is
    where the next step starts from: each element that is no longer its master's rounded value
    becomes the master.

    Gradients accumulate in float32 where torch can do that without DDP; under DDP they are
    bfloat16, as is their reduction, which halves its bytes. In bytes per parameter, with AdamW:
    float32 and autocast 16 and the converted copy, ``"master"`` 18 (2 + 4 + 4 + 8),
    ``"stochastic_rounding"`` 14, and 4 more during the step.

    Only parameters are converted, and floating-point inputs, as by ``precision="bf16-true"``.
    Buffers keep their dtype, so rotary tables stay float32; norms compute in float32 from a
    bfloat16 scale. A parameter that is frozen when training starts has no master until an optimizer
    updates it. When the trainer is done the module gets its float32 weights back.

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

    def __init__(self, mode: Mode = "master", *, seed: int = 0) -> None:
        if mode not in get_args(Mode):
            raise InvalidValueError(f"mode={mode!r} must be one of {get_args(Mode)}")
        super().__init__("bf16-true")
        self.mode = mode
        self.seed = seed
        self._steps = 0  # optimizer steps rounded so far, which seed the noise
        self._weights: dict[int, _Weight] = {}  # by the identity of the parameter
        self._patches: list[_Patch] = []
        self._masters_are_kept = True
        self._compares = True  # before each step, or where there is a sign of change only
        self._replicated = False  # under DDP, whose buckets have the dtype of the weights
        self._narrow: list[tuple[nn.Parameter, Tensor]] = []  # gradients that wait for a step

    def __getstate__(self) -> dict[str, Any]:
        """A copy, in another process say, has the arguments, and no weights of a run."""
        run = {"_weights": {}, "_patches": [], "_narrow": [], "_masters_are_kept": True}
        return vars(self) | run

    @property
    def description(self) -> str:
        """What is kept in what, for people."""
        if self.mode == "master":
            return "bf16 weights with float32 masters"
        return "bf16 weights rounded stochastically"

    # ------------------------------------------------------------------ set-up

    @override
    def tensor_init_context(self) -> AbstractContextManager[None]:
        return nullcontext()  # weights are made in float32, which the masters start from

    @override
    def forward_context(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()  # what a module makes in float32 is meant to be float32

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
            weight = _Weight(name, len(self._weights), parameter)
            if parameter.requires_grad:
                # `.data`, since `detach()` shares the count of changes that tells weights apart.
                weight.master = nn.Parameter(parameter.data.float())
            self._weights[id(parameter)] = weight
            _set_values(parameter, parameter.detach().to(torch.bfloat16))
        return module

    @override
    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Sees to it that the optimizers step on float32 tensors."""
        self._replicated = isinstance(model, DistributedDataParallel)
        self._masters_are_kept = not optimizers or self.mode == "master"
        self._compares = not _writes_are_counted(model)
        for weight in self._weights.values():
            if not self._replicated:
                _set_grad_dtype(weight.parameter, torch.float32)
            if weight.master is not None:
                self._place(weight.master, weight.parameter.device)
        for optimizer in optimizers:
            self._patch(optimizer)
        return super().connect(model, optimizers, lr_schedulers)

    def _place(self, master: nn.Parameter, device: torch.device) -> None:
        master.data = master.data.to(device)
        if self._replicated:  # the weights are alike on all ranks by now, the masters need not be
            torch.distributed.broadcast(master.data, src=0)
        if not self._masters_are_kept:
            _release(master)

    def _patch(self, optimizer: Any) -> None:
        """Puts the exchange of weights for masters around an optimizer's methods that need it.

        Around those of the object, not into `optimizer_step`: the raw optimizers of manual
        optimization never come there, nor do those that another optimizer holds.
        """
        if not isinstance(optimizer, Optimizer) or any(p.owner is optimizer for p in self._patches):
            return
        self._patches.append(_Patch(optimizer, "step", self._step))
        self._patches.append(_Patch(optimizer, "load_state_dict", self._load_optimizer))
        for parameter, state in optimizer.state.items():  # some make it before the first step
            for key, value in state.items() if id(parameter) in self._weights else ():
                if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
                    state[key] = value.float()
        for inner in list(vars(optimizer).values()):
            self._patch(inner)

    # ------------------------------------------------------------------ steps

    @override
    def optimizer_step(  # type: ignore[override]
        self,
        optimizer: Any,
        model: L.LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """Steps on the masters and rounds them into the weights."""
        if self._weights:
            self._patch(optimizer)  # one that was not there when training started
        try:
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        finally:
            self._narrow_gradients()

    @override
    def _after_closure(self, model: L.LightningModule, optimizer: Any) -> None:
        """Shows hooks and clipping float32 gradients, under DDP too."""
        if self._replicated:
            self._widen_gradients(optimizer)
        super()._after_closure(model, optimizer)

    def _widen_gradients(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                narrow = parameter.grad
                if id(parameter) in self._weights and narrow is not None:
                    self._narrow.append((parameter, narrow))
                    parameter.grad = None
                    _set_grad_dtype(parameter, torch.float32)
                    parameter.grad = narrow.to(parameter.grad_dtype)

    def _narrow_gradients(self) -> None:
        """Puts the gradients back into DDP's buckets, where the next ones may be added."""
        for parameter, narrow in self._narrow:
            wide, parameter.grad = parameter.grad, None
            _set_grad_dtype(parameter, narrow.dtype)
            if wide is not None:
                parameter.grad = narrow.copy_(wide)
        self._narrow.clear()

    def _step(self, optimizer: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs an optimizer's ``step`` with masters in the places of weights.

        The closure computes with the weights, so it runs outside the exchange: for the first time
        before the step, which would begin with it.
        """
        if not self._weights:
            return step(*args, **kwargs)
        exchange = _Exchange(optimizer, self)
        closure = args[0] if args else kwargs.get("closure")
        if callable(closure):
            evaluate = _Evaluate(closure, exchange)
            args, kwargs = (evaluate, *args[1:]), {**kwargs}
            kwargs.pop("closure", None)
        exchange.enter()
        try:
            return step(*args, **kwargs)
        finally:
            exchange.leave(last=True)

    def _load_optimizer(
        self, optimizer: Any, load: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Loads an optimizer's state as that of masters: torch gives it their dtype."""
        exchange = _Exchange(optimizer, self)
        # What is frozen now may have been trained: its state is float32 without a master, too.
        exchange.exchange(_master_or_stand_in)
        try:
            return load(*args, **kwargs)
        finally:
            exchange.undo()

    def _master_of(self, weight: _Weight) -> nn.Parameter:
        """The master, made now where the parameter was frozen when training started."""
        if weight.master is None:
            weight.master = nn.Parameter(weight.parameter.data.float())
            if not self._masters_are_kept:
                _release(weight.master)
        return weight.master

    def _master_for_step(self, weight: _Weight) -> nn.Parameter | None:
        if weight.master is None and weight.parameter.grad is None:
            return None  # frozen
        return self._master_of(weight)

    def _round(self, weights: list[_Weight]) -> None:
        """Rounds masters into their weights with the noise of this step, and frees them."""
        generators: dict[torch.device, torch.Generator] = {}
        for weight in sorted(weights, key=lambda weight: weight.index):
            parameter, master = weight.parameter, self._master_of(weight)
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device)
                generators[device].manual_seed(self.seed * 1_000_003 + self._steps)
            parameter.copy_(round_stochastically(master, generators[device]))
            _release(master)
        self._steps += 1

    # ------------------------------------------------------------------ checkpoints and the end

    @override
    def state_dict(self) -> dict[str, Any]:
        """The masters by parameter name, or the position in the noise."""
        masters = {
            w.name: w.master.detach() for w in self._weights.values() if w.master is not None
        }
        if not masters:
            return {}
        if not self._masters_are_kept:
            return {"mode": self.mode, "steps": self._steps}
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
        weights = {weight.name: weight for weight in self._weights.values()}
        if not masters.keys() <= weights.keys():
            ours = {name for name, weight in weights.items() if weight.master is not None}
            differing = sorted(masters.keys() ^ ours)
            raise InvalidValueError(
                f"the checkpoint's master weights are of another model: {len(differing)} names "
                f"differ, such as {differing[:3]}"
            )
        for name, master in masters.items():
            self._master_of(weights[name]).data.copy_(master)
            weights[name].seen = None

    @override
    def teardown(self) -> None:
        """Gives the parameters the dtype they came in, and the masters as their values."""
        for patch in reversed(self._patches):
            patch.undo()
        self._patches.clear()
        self._narrow_gradients()
        for weight in self._weights.values():
            parameter, values = weight.parameter, weight.parameter.detach()
            if self._masters_are_kept and weight.master is not None:
                master = weight.master.data.to(parameter.device)
                _follow(master, values)
                values = master
            _set_values(parameter, values.to(weight.dtype))
        self._weights = {}
        self._masters_are_kept = self._compares = True


class _Exchange:
    """Masters in the places of weights, in an optimizer's groups and state.

    The lists of parameters are changed in place, since others may hold them, as L-BFGS does.
    """

    def __init__(self, optimizer: Any, plugin: MasterWeightsPrecision) -> None:
        self._optimizer, self._plugin = optimizer, plugin
        self._held: list[_Weight] = []  # whose masters are in the optimizer now
        self._places: dict[int, nn.Parameter] = {}  # by the identity of what is there instead
        self._gradients: list[Tensor | None] = []
        self._versions: list[int] = []
        self._known: set[int] = set()  # whose masters were filled in this step

    def exchange(self, master_of: Callable[[_Weight], nn.Parameter | None]) -> None:
        """Puts in what ``master_of`` gives for each weight, if anything."""
        weights, state = self._plugin._weights, self._optimizer.state
        for group in self._optimizer.param_groups:
            parameters = group["params"]
            for index, parameter in enumerate(parameters):
                weight = weights.get(id(parameter))
                master = None if weight is None else master_of(weight)
                if weight is None or master is None:
                    continue
                parameters[index] = master
                if parameter in state:
                    state[master] = state.pop(parameter)
                self._held.append(weight)
                self._places[id(master)] = parameter

    def undo(self) -> None:
        """Puts the weights back."""
        state = self._optimizer.state
        for group in self._optimizer.param_groups:
            held = group["params"]
            for index, master in enumerate(held):
                parameter = self._places.get(id(master))
                if parameter is not None:
                    held[index] = parameter
                    if master in state:
                        state[parameter] = state.pop(master)
        self._held, self._places = [], {}

    @torch.no_grad()
    def enter(self) -> None:
        """Puts masters in, with the values of the weights and their gradients."""
        self.exchange(self._plugin._master_for_step)
        kept = self._plugin._masters_are_kept
        self._gradients, self._versions = [], []
        for weight in self._held:
            parameter, master = weight.parameter, self._plugin._master_of(weight)
            if not kept and weight.index not in self._known:
                master.data = parameter.data.to(torch.float32)
            elif self._plugin._compares or weight.seen != weight.mark():
                _follow(master.data, parameter.detach())
            self._known.add(weight.index)
            gradient = parameter.grad
            # A float32 gradient is shared, not copied.
            master.grad = None if gradient is None else gradient.to(torch.float32)
            self._gradients.append(master.grad)
            self._versions.append(parameter._version)

    @torch.no_grad()
    def leave(self, last: bool = False) -> None:
        """Rounds the masters into the weights and takes them out.

        Raises:
            ValueError: The optimizer updated the weights.
        """
        held = self._held
        touched = [w.name for w, v in zip(held, self._versions) if w.parameter._version != v]
        for weight, gradient in zip(held, self._gradients):
            master = self._plugin._master_of(weight)
            if master.grad is not gradient:  # zero_grad() within the step
                weight.parameter.grad = master.grad
            master.grad = None
        self.undo()
        if not held:  # of an optimizer within another, which has put masters in already
            return
        if last and not self._plugin._masters_are_kept:
            self._plugin._round(held)
        else:
            masters: list[Tensor] = [self._plugin._master_of(weight) for weight in held]
            parameters: list[Tensor] = [weight.parameter for weight in held]
            torch._foreach_copy_(parameters, masters)
            for weight in held:
                weight.seen = weight.mark()
        if touched:
            raise InvalidValueError(
                f"{type(self._optimizer).__name__}.step changed the module's bfloat16 weights "
                f"themselves ({len(touched)}, such as {touched[0]}): it keeps references besides "
                f"its param_groups, which MasterWeightsPrecision cannot follow; use "
                f"BF16MixedPrecision, or an optimizer that updates what is in param_groups"
            )


class _Evaluate:
    """The closure of an optimizer's step: has run once already, and again computes with weights."""

    def __init__(self, closure: Callable[..., Any], exchange: _Exchange) -> None:
        self._closure, self._exchange = closure, exchange
        with torch.enable_grad():
            self._first = [closure()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._first:
            return self._first.pop()
        self._exchange.leave()
        result = self._closure(*args, **kwargs)
        self._exchange.enter()
        return result


class _Patch:
    """Another function around a method of one object, for a while.

    What was noted on the method, as learning rate schedulers do, is found on the new one.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        self.owner, self._name = owner, name
        self._own = name in vars(owner)
        self._original = original = getattr(owner, name)

        def method(owner: Any, *args: Any, **kwargs: Any) -> Any:
            return around(owner, original, *args, **kwargs)

        update_wrapper(method, original)
        del method.__wrapped__  # type: ignore[attr-defined]  # it is bound, this is not
        self._method = MethodType(method, owner)
        setattr(owner, name, self._method)

    def undo(self) -> None:
        """Takes it away, unless somebody has put one more around it; then it passes calls on."""
        if vars(self.owner).get(self._name) is not self._method:
            return
        if self._own:
            setattr(self.owner, self._name, self._original)
        else:
            delattr(self.owner, self._name)


def _writes_are_counted(model: Any) -> bool:
    """Whether all code that could write weights between steps is known not to use ``.data``.

    Such a write shows on no counter: where there may be one, all weights are compared with their
    masters before a step, which takes about as long as the step. The module, its parts and the
    callbacks are looked at; what is this package's own, as in its recipes, never writes so.
    """
    module = model.module if isinstance(model, DistributedDataParallel) else model
    trainer = getattr(module, "_trainer", None)
    if trainer is None:
        return False
    parts = {type(part) for part in module.modules()}
    guests = {type(callback) for callback in trainer.callbacks} - _KNOWN_CALLBACKS
    return {_package(part) for part in parts} <= _KNOWN_PACKAGES and all(
        _package(guest) == "lightning_llm" for guest in guests
    )


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _follow(master: Tensor, weight: Tensor) -> None:
    """Gives a master the elements of its weight that are no longer its own, rounded.

    Whoever wrote them: an in-place operation, ``.data.copy_`` (as Lightning's averages do), or a
    loaded checkpoint. What nobody touched keeps its low bits.
    """
    rounded = master.to(weight.dtype)
    if weight.device.type == "cpu" and _same_bits(rounded, weight):
        return  # elsewhere asking would wait for the device
    torch.where(rounded == weight, master, weight, out=master)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal; in words of eight bytes, five times as fast, where it can."""
    if x.dtype == y.dtype == torch.bfloat16 and x.is_contiguous() and y.is_contiguous():
        whole = all(not t.numel() % 4 and not t.storage_offset() % 4 for t in (x, y))
        word = torch.int64 if whole else torch.int16
        x, y = x.view(-1).view(word), y.view(-1).view(word)
    return torch.equal(x, y)


def _master_or_stand_in(weight: _Weight) -> nn.Parameter:
    """A master, or an empty parameter of its dtype and on its device."""
    if weight.master is not None:
        return weight.master
    return nn.Parameter(torch.empty(0, dtype=torch.float32, device=weight.parameter.device))


def _release(master: nn.Parameter) -> None:
    """Frees the memory of a master until the next step; its dtype and device stay."""
    master.data = master.data.new_empty(0)


def _set_grad_dtype(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    if hasattr(parameter, "grad_dtype"):  # torch 2.10 and later
        parameter.grad_dtype = dtype


def _set_values(parameter: nn.Parameter, values: Tensor) -> None:
    """Gives a parameter values of another dtype, and its gradient that dtype."""
    gradient, parameter.grad = parameter.grad, None
    parameter.data = values.detach()
    _set_grad_dtype(parameter, values.dtype)
    if gradient is not None:
        parameter.grad = gradient.to(values.dtype)
