"""`Preemption`: on a signal all ranks finish the step, save once, and end with 128 + signal."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_llm.callbacks._requeue import hand_over, requeue, requeue_signal
from lightning_llm.errors import InvalidValueError
from lightning_llm.runtime.lightning_api import inside_accumulation_window


class Preempted(SystemExit):
    """The run was asked to stop, and has saved itself.

    Attributes:
        path: The checkpoint; None where a second Ctrl-C left no time for it.
    """

    path: Path | None = None


class Preemption(L.Callback):
    """End a run that a scheduler wants to stop so that it can be resumed without loss.

    A signal only sets a flag, on whatever ranks it reaches. After each optimizer step the ranks
    share their flags, over a gloo group of their own and without waiting: the answer is read one
    step later. When any has one, all save the same step and leave with exit status 128 + signal
    (143 for SIGTERM, 130 for Ctrl-C). A signal during validation is answered after the next
    optimizer step; where no step is taken, as with a ``training_step`` that returns None, after the
    micro-batch that should have ended in one.

    Ctrl-C says what it does: the first one saves, a second one leaves at once. Before the first
    batch there is nothing to save, and it ends the run as usual. A process that was started with
    Ctrl-C ignored (``nohup``, ``&``) goes on ignoring it.

    It takes the place of Lightning's handling, which waits for the other ranks inside the signal
    handler, shares a flag over the device in every micro-batch, and ends with status 0.

    Under SLURM the checkpoint is ``hpc_ckpt_N.ckpt`` in ``trainer.default_root_dir``, from which a
    job that starts there again continues by itself; the one before is deleted. The requeue signal
    of Lightning's ``SLURMEnvironment`` (SIGUSR1), besides, asks SLURM for that start, when all is
    on the disk.

    Args:
        filename: Of the checkpoint; it lies in the folder of the run's checkpoint callback, else
            in ``trainer.default_root_dir``.
        signals: What asks for the end, by name.

    Attributes:
        how_to_continue: What the last line says about it; the command line puts its own there.

    Raises:
        ValueError: A signal is unknown on this system.
    """

    def __init__(
        self,
        filename: str = "preempted.ckpt",
        signals: tuple[str, ...] = ("SIGTERM", "SIGUSR1", "SIGINT"),
    ) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if unknown:
            raise InvalidValueError(f"signals={signals}: this system has no {', '.join(unknown)}")
        self.filename = filename
        self.signals = tuple(signal.Signals[name] for name in signals)
        self.how_to_continue: str | None = None
        self._received = 0
        self._step = -1
        self._phase: Literal["start", "training", "end"] = "start"
        self._still = 0  # batches since the last step
        self._longest = 0  # batches that any step took so far
        self._group: Any = None
        self._shared: tuple[Any, Tensor] | None = None  # the exchange under way and its result

    # ------------------------------------------------------------------ the flag

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare the exchange between ranks."""
        self._received, self._step, self._shared, self._group = 0, trainer.global_step, None, None
        self._phase, self._still, self._longest = "start", 0, 0
        if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
            # Lightning's own exchange: one on the device per micro-batch.
            loop = cast(Any, trainer.fit_loop.epoch_loop)
            loop._broadcast_sigterm_tensor = _nothing
        connector: Any = trainer._signal_connector

        def register() -> None:
            del connector.register_signal_handlers  # this stand-in
            connector.register_signal_handlers()
            self._listen(trainer)

        # At once after Lightning, which restores all in the end: a process that builds batches has
        # the handlers of the moment it is forked, and under SLURM Lightning's would save in it.
        connector.register_signal_handlers = register

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps from here: by now a checkpoint is restored."""
        self._step = trainer.global_step
        self._phase = "training"

    def _listen(self, trainer: L.Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        told_by = os.getpid() if trainer.is_global_zero else None

        def note(number: int, frame: Any) -> None:
            if number == signal.SIGINT:
                self._interrupted(trainer, tells=os.getpid() == told_by)
            self._received = number

        for number in {*self.signals, requeue_signal(trainer)} - {None}:
            if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(cast(int, number), note)

    def _interrupted(self, trainer: L.Trainer, *, tells: bool) -> None:
        """Answer Ctrl-C at once, in words or by leaving.

        Raises:
            KeyboardInterrupt: Nothing was trained yet.
            Preempted: It is the second one.
        """
        if self._phase == "start":
            raise KeyboardInterrupt
        if self._received == signal.SIGINT:
            if tells:
                _tell("Ctrl-C again: left at once; the step under way was not saved")
            raise Preempted(128 + signal.SIGINT)
        if not tells:
            return
        if self._phase == "end":
            _tell("Ctrl-C: the run is over and about to end by itself; again leaves at once")
        elif trainer.validating or trainer.evaluating:
            _tell(
                "Ctrl-C: once this validation and one more step are done, the run is saved; "
                "Ctrl-C again leaves at once, without saving"
            )
        else:
            _tell("Ctrl-C: saving after this step; Ctrl-C again leaves at once, without saving")

    # ------------------------------------------------------------------ the safe point

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After an optimizer step: save and leave if any rank was asked to.

        Raises:
            Preempted: It was, and the checkpoint is on the disk.
        """
        if not self._is_safe_point(trainer, pl_module):
            return
        number = self._agree()
        if number:
            self._leave(trainer, number)

    def _is_safe_point(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether no step is half done, on all ranks alike."""
        self._still += 1
        if trainer.global_step != self._step:
            self._longest = max(self._longest, self._still)
            self._step, self._still = trainer.global_step, 0
            return True
        if pl_module.automatic_optimization:
            return not inside_accumulation_window(trainer)
        # When the module steps is its own affair; it is done once it takes longer than ever.
        return self._still > self._longest

    def _agree(self) -> int:
        """Return the signal any rank had when the step before ended; 0 for none."""
        if self._group is None:
            return self._received
        answer = 0
        if self._shared is not None:
            work, flag = self._shared
            work.wait()
            answer = int(flag)
        flag = torch.tensor(self._received)
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._shared = work, flag
        return answer

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finish the exchange under way."""
        self._phase = "end"
        if self._shared is not None:
            self._shared[0].wait()
            self._shared = None

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        path = self._path(trainer)
        trainer.save_checkpoint(path)
        # A save in a thread ends here, or raises.
        trainer.strategy.checkpoint_io.teardown()
        if requeue_signal(trainer) is not None and trainer.is_global_zero:
            path = hand_over(path)
            if number == requeue_signal(trainer):
                requeue()
        # Launchers end all ranks once one has left: nobody leaves before all is done.
        trainer.strategy.barrier("preempted")
        name = signal.Signals(number).name
        said = f"{name}: stopped after step {trainer.global_step}, saved {path}"
        if requeue_signal(trainer) is None:
            said += (
                f"; continue with {self.how_to_continue or f'fit(..., ckpt_path={str(path)!r})'}"
            )
        rank_zero_info(said)
        stop = Preempted(0 if _is_child(trainer) else 128 + number)
        stop.path = path
        raise stop

    def _path(self, trainer: L.Trainer) -> Path:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if requeue_signal(trainer) is not None:
            folder = None
        return Path(folder or trainer.default_root_dir) / self.filename


def _tell(line: str) -> None:
    """To standard error from within a signal handler, where its buffer may be in use."""
    os.write(2, f"\n{line}\n".encode())


def _is_child(trainer: L.Trainer) -> bool:
    """Whether Lightning's launcher started this rank: it kills the first for another's status."""
    environment = trainer._accelerator_connector.cluster_environment
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _nothing() -> None:
    """Stand in for an exchange that happens elsewhere."""
