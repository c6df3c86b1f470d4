"""`RandomState`: a resumed run draws the random numbers the uninterrupted one would have."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_llm.callbacks._meeting import gather_objects
from lightning_llm.runtime.accumulation import follow_accumulation_schedule

_KEY = "lightning_llm.random_state"


class RandomState(L.Callback):
    """Save the generators of Python, numpy, torch and CUDA of every rank, and restore them.

    Lightning saves none of them, so dropout after a resume is other dropout. They are restored
    just before the first batch is trained on. A checkpoint taken between two micro-batches of an
    accumulation window holds the generators as they were when the window began, because that is
    where training goes on.

    With another number of ranks than before nothing is restored, and it is said: random numbers
    are then others, the order of the samples of `lightning_llm`'s loaders still the same.
    """

    def __init__(self) -> None:
        self._to_restore: list[dict[str, Any]] | None = None
        self._window_step = -1  # optimizer step of the window whose beginning is remembered
        self._window_start: dict[str, Any] | None = None

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore before the first batch; remember where an accumulation window begins."""
        if self._to_restore is not None:
            follow_accumulation_schedule(trainer)
        if self._to_restore is not None:
            states, self._to_restore = self._to_restore, None
            if len(states) == trainer.world_size:
                _set_state(states[trainer.global_rank])
            else:
                rank_zero_info(
                    f"random states of {len(states)} ranks are not restored on "
                    f"{trainer.world_size}: dropout draws other numbers than before"
                )
        if trainer.accumulate_grad_batches > 1 and self._window_step != trainer.global_step:
            self._window_step = trainer.global_step
            self._window_start = _get_state()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the windows of another run; go on with the accumulation of the epoch."""
        if self._to_restore is not None:
            follow_accumulation_schedule(trainer, self)
        self._window_step, self._window_start = -1, None

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the states of all ranks; every rank takes part."""
        inside_window = self._window_step == trainer.global_step
        state = self._window_start if inside_window else _get_state()
        checkpoint[_KEY] = gather_objects(trainer, state)

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until training begins: the set-up draws numbers too."""
        self._to_restore = checkpoint.get(_KEY)


def _get_state() -> dict[str, Any]:
    """States of this process's generators, as plain data."""
    state = _collect_rng_states(include_cuda=False)
    # An array would make the checkpoint need more than plain data.
    name, keys, *rest = state["numpy"]
    state["numpy"] = (name, torch.from_numpy(keys.astype("int64")), *rest)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    _set_rng_states(
        {
            "python": (version, tuple(internal), gauss),
            "numpy": (name, keys.numpy().astype("uint32"), *rest),
            "torch": state["torch"].cpu(),
        }
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
