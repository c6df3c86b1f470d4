"""Runs a few real steps of a run under observation and reports what they show.

After the warm-up come steps that are timed and otherwise left alone, then steps in which the
host's waits are counted, which slows them down; the last of these is a log point. Then the run
ends, and the model is asked about documents.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch.utils._pytree import tree_map
from typing_extensions import override

from lightning_llm.callbacks._flops import find_peak, find_token_flops
from lightning_llm.callbacks._meeting import data_replica
from lightning_llm.callbacks._token_count import TokenCount
from lightning_llm.diagnostics.clocks import Clock, clock_of
from lightning_llm.diagnostics.compilation import CompilationWatch
from lightning_llm.diagnostics.documents import Sight, holds_several_documents, try_sight
from lightning_llm.diagnostics.host_syncs import HostSync, HostSyncCounter
from lightning_llm.diagnostics.padding import padding_mask
from lightning_llm.diagnostics.phases import PHASES, PhaseTimer
from lightning_llm.diagnostics.quiet import quiet
from lightning_llm.diagnostics.report import Report
from lightning_llm.diagnostics.setup import Setup, read_setup
from lightning_llm.errors import InvalidValueError

_COUNTED_STEPS = 3
_PLACES = 5


def examine(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: L.LightningDataModule | None = None,
    *,
    train_dataloaders: Any = None,
    steps: int = 8,
    warmup: int = 3,
) -> Report:
    """Run a few steps of a run and report its speed and its faults.

    No checkpoint, no log and no file is written, and nothing is validated. The module's weights
    and the trainer's counters are those of a short run afterwards.

    Args:
        trainer: As for ``fit``; it must be fresh.
        module: As for ``fit``.
        datamodule: As for ``fit``.
        train_dataloaders: As for ``fit``.
        steps: Optimizer steps to time.
        warmup: Optimizer steps before, in which code is compiled and memory allocated.

    Returns:
        A report without advice: see `lightning_llm.diagnostics.advise`.

    Raises:
        ValueError: ``steps`` or ``warmup`` is too small, or the data ends within the warm-up.
    """
    if steps < 1:
        raise InvalidValueError(f"steps={steps} must be at least 1")
    if warmup < 2:
        raise InvalidValueError(
            f"warmup={warmup} must be at least 2: compilation takes up to two steps"
        )
    examination = Examination(clock_of(trainer.strategy.root_device), steps, warmup)
    with quiet(trainer, examination, examination.timer):
        try:
            trainer.fit(module, datamodule=datamodule, train_dataloaders=train_dataloaders)
        except Unsupported as error:  # fullgraph=True, and the code breaks the graph
            return Report(
                examination.seen_setup or Setup(strategy=type(trainer.strategy).__name__),
                seconds=dict.fromkeys(PHASES),
                graph_breaks=1,
                break_reasons=[str(error).strip().splitlines()[0]],
            )
        finally:
            examination.syncs.stop()
    return examination.report(trainer, module)


class Examination(L.Callback):
    """Observes the steps of a fit and ends it once enough were seen; see `examine`.

    Args:
        clock: Measures the device of the run.
        steps: Optimizer steps to time.
        warmup: Optimizer steps before.
    """

    def __init__(self, clock: Clock, steps: int, warmup: int) -> None:
        super().__init__()
        self.timer = PhaseTimer(clock, guest=self.state_key)
        self.syncs = HostSyncCounter(torch.device("cpu"))
        self.seen_setup: Setup | None = None
        self._timed_from, self._counted_from = warmup, warmup + steps
        self._last = warmup + steps + _COUNTED_STEPS
        self._step = 0
        self._compilation = CompilationWatch()
        self._tokens = self._flops = 0.0
        self._count = TokenCount()
        self._padding: list[Tensor] = []
        self._batch: Any = None
        self._found: list[Counter[HostSync]] = []  # up to the end of each counted step
        self._log_every = 0
        self._sight = Sight(None, None, "the run ended early")
        self._peak_memory: int | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = trainer.strategy.root_device
        self.syncs = HostSyncCounter(device, lambda: self.timer.action)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for config in trainer.lr_scheduler_configs:
            config.strict = False  # a schedule that follows val_loss: nothing is validated

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.syncs.on_device(batch)
        if self.seen_setup is None:
            self.seen_setup = read_setup(trainer, pl_module, batch)
        # In the warm-up the device may be asked whether a batch is one to try documents on.
        is_better = self._step < self._timed_from and not holds_several_documents(self._batch)
        if self._batch is None or (is_better and holds_several_documents(batch)):
            self._batch = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, batch)

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.syncs.on_device([p.grad for p in pl_module.parameters()])

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._timed_from <= self._step < self._counted_from:
            self._count.add(batch, outputs)
            padding = padding_mask(batch)
            if padding is not None:
                self._padding.append(padding.float().mean())
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._step_ended(trainer, pl_module)

    def _step_ended(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._step == 1:
            # The schedules know the length of the run now; this one may be longer.
            trainer.fit_loop.epoch_loop.max_steps = -1
            trainer.fit_loop.max_epochs = -1
        if self._step == self._timed_from:
            self._compilation.settled()
            self.timer.begin()
        if self._step == self._counted_from:
            self.timer.end()
            counted = self._count.work(find_token_flops(None, module)).tolist()
            self._tokens, self._flops = counted[0], counted[1]
            self._peak_memory = _peak_memory(trainer.strategy.root_device)
            self._log_every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            self.syncs.start([*module.parameters(), *module.buffers(), *_state(trainer)])
        if self._step >= self._counted_from:
            self._found.append(self.syncs.found.copy())
            if self._log_every > 1:  # the next to last step is followed by a log point
                trainer.log_every_n_steps = self._last - 1  # type: ignore[attr-defined]
        if self._step == self._last:
            self.syncs.stop()
            trainer.log_every_n_steps = self._log_every  # type: ignore[attr-defined]
            trainer.fit_loop.epoch_loop.max_steps = self._step

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.syncs.stop()
        if self._batch is not None:
            self._sight = try_sight(pl_module, self._batch)

    def report(self, trainer: L.Trainer, module: L.LightningModule) -> Report:
        """Return what was seen.

        Raises:
            ValueError: The run ended before all steps were made.
        """
        if self._step < self._last or self.seen_setup is None:
            raise InvalidValueError(
                f"the run ended after {self._step} of {self._last} optimizer steps; give the data "
                f"more rows, or lower trainer.accumulate_grad_batches"
            )
        steps = self._counted_from - self._timed_from
        split = self.timer.split()
        _, replicas = data_replica(trainer)
        tokens = self._tokens * replicas
        seconds: dict[str, float | None] = {k: v / steps for k, v in split.phases.items()}
        if not module.automatic_optimization:
            seconds |= {"backward": None, "optimizer": None}
        compilation = self._compilation.result()
        between, at_log_point, places = self._waits()
        return Report(
            setup=self.seen_setup,
            steps=steps,
            tokens_per_second=tokens / split.total if tokens else None,
            tokens_per_step=tokens / steps if tokens else None,
            step_seconds=split.total / steps,
            seconds=seconds,
            callback_seconds={k: v / steps for k, v in split.callbacks.items()},
            mfu=self._mfu(trainer, split.total),
            peak_memory_bytes=self._peak_memory,
            graphs=compilation.graphs,
            graph_breaks=compilation.graph_breaks,
            recompiles=compilation.recompiles,
            host_syncs_per_step=between,
            host_syncs_at_log_point=at_log_point,
            host_sync_places=places,
            padding_fraction=float(torch.stack(self._padding).mean()) if self._padding else None,
            document_leak=self._sight.document_leak,
            causal=self._sight.causal,
            documents=self._sight.reason,
            break_reasons=compilation.break_reasons,
            recompile_reasons=compilation.recompile_reasons,
        )

    def _waits(self) -> tuple[float, float, list[dict[str, Any]]]:
        """Waits per step between log points, in a step with one, and where they are."""
        cycles = [after - before for before, after in zip(self._found, self._found[1:])]
        quiet_cycles = cycles[:-1] if self._log_every > 1 else cycles
        total = sum((Counter(cycle) for cycle in quiet_cycles), Counter[HostSync]())
        everywhere = sum(cycles, Counter[HostSync]())
        places = [
            {
                "count": count,
                "what": sync.what,
                "where": sync.where,
                "between_log_points": sync in total,
            }
            for sync, count in everywhere.most_common(_PLACES)
        ]
        return total.total() / len(quiet_cycles), float(cycles[-1].total()), places

    def _mfu(self, trainer: L.Trainer, seconds: float) -> float | None:
        """Share of the peak of this rank's device, for this rank's tokens."""
        peak = find_peak(trainer)
        return self._flops / (seconds * peak) if peak and self._flops else None


def _state(trainer: L.Trainer) -> list[Any]:
    """Tensors of the optimizers' states that lie on the device: those of a parameter's shape."""
    return [
        value
        for optimizer in trainer.optimizers
        for parameter, state in optimizer.state.items()
        for value in (state.values() if isinstance(state, dict) else ())
        if isinstance(value, Tensor) and value.shape == getattr(parameter, "shape", None)
    ]


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
