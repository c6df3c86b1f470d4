"""Splits the time of training steps into phases, at the places Lightning's profilers see.

Lightning announces every hook and every part of a step to its profiler by name. Time counts for
the innermost announced part alone, so the phases add up to the whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning.pytorch.profilers import Profiler
from typing_extensions import override

from lightning_llm.diagnostics.clocks import Clock

PHASES = ("data", "forward", "backward", "optimizer", "framework")

# By the last part of an action's name, e.g. "[Strategy]SingleDeviceStrategy.backward".
_STRATEGY_PHASES = {"training_step": "forward", "backward": "backward", "batch_to_device": "data"}
_MODULE_PHASES = {
    "optimizer_step": "optimizer",
    "optimizer_zero_grad": "optimizer",
    "configure_gradient_clipping": "optimizer",
    "lr_scheduler_step": "optimizer",
    "on_before_batch_transfer": "data",
    "transfer_batch_to_device": "data",
    "on_after_batch_transfer": "data",
    "on_train_batch_start": "framework",
    "on_train_batch_end": "framework",
}


class Owner(NamedTuple):
    """What time is charged to: a phase, and the callback within it if there is one."""

    phase: str
    callback: str | None = None


class Split(NamedTuple):
    """Seconds by phase, and by callback; the callbacks are part of the framework's time."""

    phases: dict[str, float]
    callbacks: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.phases.values())


class PhaseTimer(Profiler):
    """A profiler that charges time to phases between ``begin`` and ``end``.

    Args:
        clock: Measures the device that the model is on.
        guest: State key of a callback whose time is left to the framework unnamed.
    """

    def __init__(self, clock: Clock, guest: str = "") -> None:
        super().__init__()
        self._clock, self._guest = clock, guest
        self._open: list[tuple[str, Owner]] = []
        self._marks: list[Any] = []
        self._owners: list[Owner] = []  # of the time that starts at each mark
        self._running = False

    @property
    def action(self) -> str | None:
        """Name of the innermost part that runs now."""
        return self._open[-1][0] if self._open else None

    def begin(self) -> None:
        """Start charging."""
        self._marks, self._owners = [], []
        self._running = True
        self._mark()

    def end(self) -> None:
        """Stop charging; the time is worked out by ``split``."""
        self._marks.append(self._clock.mark())
        self._running = False

    def split(self) -> Split:
        """Return the seconds between ``begin`` and ``end`` by what they went to."""
        phases = dict.fromkeys(PHASES, 0.0)
        callbacks: dict[str, float] = {}
        for owner, seconds in zip(self._owners, self._clock.seconds(self._marks)):
            phases[owner.phase] += seconds
            if owner.callback is not None:
                callbacks[owner.callback] = callbacks.get(owner.callback, 0.0) + seconds
        return Split(phases, callbacks)

    @override
    def start(self, action_name: str) -> None:
        self._open.append((action_name, self._owner_of(action_name)))
        self._mark()

    @override
    def stop(self, action_name: str) -> None:
        names = [name for name, _ in self._open]
        if action_name not in names:
            return
        # An exception may have left inner parts open.
        while self._open.pop()[0] != action_name:
            pass
        self._mark()

    @override
    def describe(self) -> None:
        """Say nothing: the report is what is read."""

    def _mark(self) -> None:
        owner = self._open[-1][1] if self._open else Owner("framework")
        if self._running and not (self._owners and self._owners[-1] == owner):
            self._owners.append(owner)
            self._marks.append(self._clock.mark())

    def _owner_of(self, action: str) -> Owner:
        whose, _, rest = action.partition("]")
        name, _, part = rest.rpartition(".")
        if whose == "[Callback":
            return Owner("framework", None if name == self._guest else name)
        if part == "train_dataloader_next":
            return Owner("data")
        table = {"[Strategy": _STRATEGY_PHASES, "[LightningModule": _MODULE_PHASES}.get(whose, {})
        surrounding = self._open[-1][1] if self._open else Owner("framework")
        return Owner(table[part]) if part in table else surrounding
