"""`FiniteGuard`: no step with a NaN reaches the weights, and none is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_llm.callbacks._batch_names import name_batches
from lightning_llm.callbacks._log_point import LogPoint
from lightning_llm.callbacks._meeting import gather_objects
from lightning_llm.callbacks._step_health import SpikeWindow, not_finite, step_health
from lightning_llm.errors import InvalidValueError, LightningLLMError

Policy = Literal["raise", "skip", "ignore"]
_HELD = 1000  # verdicts kept, where log points are rarer


class NonFiniteError(LightningLLMError, FloatingPointError):
    """A loss, gradient or weight is not a number, or training went astray."""


@dataclass
class _Verdict:
    """What was found about one step, on the device."""

    step: int
    batches: list[tuple[int, int]]  # (epoch, batch index) of this rank's micro-batches
    values: Tensor  # bad ranks, spike, consecutive skips, loss, norm, then bad micro-batches


@dataclass
class _History:
    """What is remembered about the steps of one optimizer."""

    window: SpikeWindow | None
    consecutive: Tensor | None = None  # steps left out in a row

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.consecutive is not None:
            state["consecutive"] = self.consecutive.cpu()
        if self.window is not None and self.window.values is not None:
            state["window"] = self.window.values.cpu().clone()
            state["position"] = self.window.position
        return state

    def load(self, state: dict[str, Any]) -> None:
        self.consecutive = state.get("consecutive")
        window = state.get("window")
        if self.window is not None and window is not None and len(window) == self.window.size:
            self.window.values, self.window.position = window, state["position"]


class FiniteGuard(L.Callback):
    """Judge every optimizer step on the device, on all ranks alike, before it is taken.

    Losses and gradients that are not finite, and with ``spike_sigma`` losses or gradient norms that
    stand out, are never used: under ``"raise"`` and ``"skip"`` neither weights nor the optimizer's
    state move. A learning-rate schedule and ``global_step`` go on. With a fused optimizer the
    device itself leaves the step out, under ``"raise"`` also all steps after it, and the host
    learns of it at the next log point; with another one the host reads one number per step.

    Args:
        policy: ``"raise"`` ends the run, ``"skip"`` leaves the step out and warns, ``"ignore"``
            only warns.
        spike_sigma: Standard deviations above the mean of the window; None looks for no spikes.
        spike_window: Steps in the window; the first quarter of it only fills it.
        max_consecutive_skips: End the run when so many steps in a row were left out.

    Each of several optimizers is judged by its own steps. Where the module calls
    ``loss.backward()`` itself, in manual optimization, the loss is not known and only gradients are
    judged; where ``training_step`` returns None there is nothing to judge.

    A checkpoint with a NaN in weights or optimizer state is never written, whatever the policy.
    The message names step, rank and micro-batch, and samples and documents where the loader has
    ``indices(first)`` and ``documents(sample)``, as `lightning_llm`'s have. Under ``16-mixed`` the
    gradient scaler already skips bad gradients: only losses are judged.

    Raises:
        ValueError: An argument is out of range; one error lists every problem.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[FiniteGuard("skip", spike_sigma=6.0)])
    """

    def __init__(
        self,
        policy: Policy = "raise",
        *,
        spike_sigma: float | None = None,
        spike_window: int = 128,
        max_consecutive_skips: int = 10,
    ) -> None:
        problems = []
        if policy not in get_args(Policy):
            problems.append(f"policy={policy!r} must be one of {get_args(Policy)}")
        if spike_sigma is not None and spike_sigma <= 0:
            problems.append(f"spike_sigma={spike_sigma} must be positive, or None")
        if spike_window < 8:
            problems.append(f"spike_window={spike_window} must be at least 8")
        if max_consecutive_skips < 1:
            problems.append(f"max_consecutive_skips={max_consecutive_skips} must be at least 1")
        if problems:
            raise InvalidValueError("FiniteGuard: " + "; ".join(problems))
        self.policy = policy
        self.max_consecutive_skips = max_consecutive_skips
        self._spikes = None if spike_sigma is None else (spike_sigma, spike_window)
        self._histories: dict[int, _History] = {}  # by index of the optimizer
        self._losses: list[Tensor] = []
        self._batches: list[tuple[int, int]] = []
        self._batch = (0, 0)
        self._pending: list[_Verdict] = []  # not yet read
        self._step = 0

    # ------------------------------------------------------------------ collecting

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start without leftovers of another run.

        Raises:
            ValueError: Spikes are to be skipped under a gradient scaler, which decides alone.
        """
        if self._spikes is not None and _has_scaler(trainer):
            raise InvalidValueError(
                "FiniteGuard(spike_sigma=...) cannot skip steps under 16-mixed, where the gradient "
                "scaler decides; use bf16-mixed, or spike_sigma=None"
            )
        self._losses, self._batches, self._pending = [], [], []

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have the verdicts read at each log point, with what others have there."""
        self._step = trainer.global_step
        LogPoint.of(trainer).join(self, self._verdicts)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """At a log point, act on what was found since the last."""
        before, self._step = self._step, trainer.global_step
        if LogPoint.lies_between(trainer, before, self._step):
            read = LogPoint.of(trainer).read(self, self._step, batch, outputs)
            self._settle(trainer, read)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which batch comes."""
        self._batch = (trainer.current_epoch, batch_idx)

    @override
    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss of a micro-batch, on the device."""
        self._losses.append(loss.detach())
        self._batches.append(self._batch)

    # ------------------------------------------------------------------ judging

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Decide whether the step is taken."""
        if len(self._pending) >= _HELD:
            self._settle(trainer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not self._losses and not gradients and trainer.world_size == 1:
            return  # `training_step` returned None: there is nothing to judge
        device = trainer.strategy.root_device
        scaled = _has_scaler(trainer)
        with torch.no_grad():
            health = step_health(
                self._losses, [] if scaled else gradients, trainer.world_size, device
            )
            bad, measures = health[0] > 0, health[1:]
            spike = torch.zeros_like(bad)
            history = self._history_of(_index_of(optimizer, trainer))
            if history.window is not None:
                spike = history.window.is_spike(measures) & ~bad
            skip = bad | spike
            if history.window is not None:
                history.window.add(measures, rejected=skip)
            if history.consecutive is None:
                history.consecutive = torch.zeros((), device=health.device)
            history.consecutive = torch.where(skip, history.consecutive.to(health.device) + 1, 0.0)
            found = [torch.stack((health[0], spike.float(), history.consecutive)), measures]
            if self._losses:
                found.append((~torch.stack(self._losses).isfinite()).float())
            values = torch.cat(found)
        # With `loss.backward()` of the module's own, the batch at hand is all that is known.
        batches = self._batches or [self._batch]
        self._pending.append(_Verdict(trainer.global_step, batches, values))
        self._losses, self._batches = [], []
        if self.policy == "ignore" or scaled:
            return
        if all(group.get("fused") for group in optimizer.param_groups):
            found_inf = skip.float()
            if self.policy == "raise":  # nothing moves between a bad step and its discovery
                earlier = getattr(optimizer, "found_inf", None)
                found_inf = found_inf if earlier is None else torch.maximum(found_inf, earlier)
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        elif bool(skip):
            # Every torch optimizer passes over a parameter without gradient.
            for parameter in parameters:
                parameter.grad = None
            self._settle(trainer)
        else:
            self._pending.clear()

    def _verdicts(self) -> Tensor | None:
        return torch.cat([verdict.values for verdict in self._pending]) if self._pending else None

    def _settle(self, trainer: L.Trainer, values: list[float] | None = None) -> None:
        """Act on all verdicts: on all ranks at the same point."""
        verdicts, self._pending = self._pending, []
        if not verdicts:
            return
        if values is None:
            values = torch.cat([verdict.values for verdict in verdicts]).tolist()
        for verdict in verdicts:
            own, values = values[: len(verdict.values)], values[len(verdict.values) :]
            self._act(trainer, verdict, own)

    def _act(self, trainer: L.Trainer, verdict: _Verdict, values: list[float]) -> None:
        """Raise or warn, if there was something about the step."""
        bad, spike, consecutive, loss, norm, *per_batch = values
        if not bad and not spike:
            return
        what = "loss or gradient is not finite" if bad else "loss or gradient norm is a spike"
        culprits = [b for b, flag in zip(verdict.batches, per_batch) if flag]
        message = (
            f"step {verdict.step}: {what} (loss {loss:.6g}, gradient norm {norm:.6g}); "
            f"{name_batches(trainer, culprits, verdict.batches)}"
        )
        if self.policy == "raise":
            raise NonFiniteError(f"{message}. The step was not taken")
        if self.policy == "ignore":
            rank_zero_warn(message)
            return
        if consecutive >= self.max_consecutive_skips:
            raise NonFiniteError(
                f"{message}. {consecutive:.0f} steps in a row were left out "
                f"(max_consecutive_skips={self.max_consecutive_skips})"
            )
        rank_zero_warn(f"{message}. The step was left out")

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the last steps while the loader still knows its epoch."""
        self._settle(trainer)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the last steps, and hand the optimizers back as they were."""
        self._settle(trainer)
        for optimizer in trainer.optimizers:
            if hasattr(optimizer, "found_inf"):
                del optimizer.found_inf

    # ------------------------------------------------------------------ saving

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save what is not a number, on all ranks together.

        Raises:
            NonFiniteError: A weight or a state of the optimizer is not; one is named.
        """
        self._settle(trainer)
        wrong = next(not_finite(pl_module, trainer.optimizers), None)
        names = [name for name in gather_objects(trainer, wrong) if name is not None]
        if names:
            raise NonFiniteError(
                f"no checkpoint was saved at step {trainer.global_step}: {names[0]} has values "
                "that are not finite; go on from the last checkpoint"
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        """The window of values and the count of skips, as plain data."""
        states = {index: history.state() for index, history in self._histories.items()}
        state = states.pop(0, {})
        if states:
            state["other_optimizers"] = states
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what ``state_dict`` gave; a window of another size starts empty."""
        self._histories = {}
        states = {0: state_dict, **state_dict.get("other_optimizers", {})}
        for index, state in states.items():
            self._history_of(int(index)).load(state)

    def _history_of(self, index: int) -> _History:
        if index not in self._histories:
            window = None if self._spikes is None else SpikeWindow(*self._spikes)
            self._histories[index] = _History(window)
        return self._histories[index]


def _index_of(optimizer: Optimizer, trainer: L.Trainer) -> int:
    return next((i for i, known in enumerate(trainer.optimizers) if known is optimizer), 0)


def _has_scaler(trainer: L.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None
