"""Micro-batches in a global order that ranks, workers and micro-batch size never change."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from lightning_llm.data.order import Permutation
from lightning_llm.data.packing import Batch, Rows
from lightning_llm.data.resume import align_with_trainer
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_STATE_VERSION = 1
_PLACES_AT_A_TIME = 4096


class TokenLoader:
    """Iterate over the rows of a packed store, one micro-batch at a time.

    Micro-step ``m`` of an epoch takes places ``[m G, (m + 1) G)`` of the global order, with
    ``G = micro_batch_size * world_size``, and rank ``r`` the ``r``-th part of them. The order in
    which samples are consumed is therefore the same for any number of ranks, micro-batch size and
    accumulation with an equal product. In the last micro-step the remaining samples are spread
    over the ranks and filled up with rows of padding that have no targets: every rank gets
    equally many batches of one shape, and every sample comes exactly once.

    It is no ``torch.utils.data.DataLoader``, so Lightning neither replaces its sampler nor repeats
    samples, and it has ``__len__`` and ``state_dict``, so Lightning saves and restores its place.

    Args:
        rows: What to load.
        micro_batch_size: Rows in a batch (B).
        rank: Data-parallel rank.
        world_size: Number of data-parallel ranks.
        shuffle: Permute the rows, differently in each epoch; else take them in order.
        seed: Of the permutation.
        drop_last: Leave out the samples of an incomplete last micro-step instead of padding it.
        num_workers: Processes that build batches. 0 is the fastest: a batch is one gather from
            memory-mapped ids, far cheaper than sending it between processes.
        pin_memory: Put batches in page-locked memory, for CUDA.
        strict_resume: Refuse a state that was saved with other data; else warn.
        trainer: The Lightning trainer whose count of batches has to agree with the loader's when a
            run is resumed; None outside Lightning.

    Raises:
        ValueError: An argument is out of range; one error lists every problem.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        strict_resume: bool = True,
        trainer: Trainer | None = None,
    ) -> None:
        problems = []
        if micro_batch_size < 1:
            problems.append(f"micro_batch_size={micro_batch_size} must be at least 1")
        if num_workers < 0:
            problems.append(f"num_workers={num_workers} must be at least 0")
        if not 0 <= rank < world_size:
            problems.append(f"rank={rank} must be in 0..{world_size - 1} (world_size={world_size})")
        if problems:
            raise InvalidValueError("TokenLoader: " + "; ".join(problems))
        self.rows = rows
        self.micro_batch_size, self.rank, self.world_size = micro_batch_size, rank, world_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.strict_resume, self._trainer = strict_resume, trainer
        self.epoch = 0
        self._first_step = 0  # where the next iteration starts
        self._step = 0  # batches handed out in this epoch
        # Lightning tells the epoch to `batch_sampler.sampler`. A `sampler` attribute on the loader
        # itself would make `overfit_batches` try to rebuild the loader.
        self.batch_sampler = SimpleNamespace(sampler=SimpleNamespace(set_epoch=self.set_epoch))

    @property
    def dataset(self) -> Rows:
        """The rows, under the name by which Lightning looks for the length of the data."""
        return self.rows

    @property
    def samples_per_step(self) -> int:
        """Samples of one micro-step over all ranks (G)."""
        return self.micro_batch_size * self.world_size

    @property
    def samples_per_update(self) -> int:
        """Samples of one optimizer step over all ranks: the global batch size."""
        accumulate = 1 if self._trainer is None else self._trainer.accumulate_grad_batches
        return self.samples_per_step * accumulate

    @property
    def num_samples(self) -> int:
        """Samples of one epoch over all ranks."""
        if self.drop_last:
            return len(self.rows) // self.samples_per_step * self.samples_per_step
        return len(self.rows)

    def __len__(self) -> int:
        """Return the batches of one epoch, the same on every rank."""
        return -(-self.num_samples // self.samples_per_step)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; another one than now starts at its beginning."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._first_step = self._step = 0

    def seek(self, step: int) -> None:
        """Start the next iteration at a micro-step of the current epoch."""
        self._first_step = self._step = step

    def __iter__(self) -> Iterator[Batch]:
        # A generator: the place is read when the first batch is asked for, after `set_epoch`.
        self._step, self._first_step = self._first_step, 0
        for batch in self._batches(self._step):
            self._step += 1
            if self.pin_memory:
                batch = {name: _pinned(value) for name, value in batch.items()}
            yield batch

    def _batches(self, first: int) -> Iterator[Batch]:
        if self.num_workers == 0:
            for indices in self.indices(first):
                yield self.rows.__getitems__(indices)
            return
        yield from DataLoader(
            self.rows,  # type: ignore[arg-type]
            batch_sampler=_Indices(self, first),  # type: ignore[arg-type]
            num_workers=self.num_workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            worker_init_fn=_leave_signals_to_the_rank,
            # A generator of its own: the number of workers must not move the global random state.
            generator=torch.Generator().manual_seed(self.seed % 2**63),
        )

    def indices(self, first: int = 0) -> Iterator[npt.NDArray[np.int64]]:
        """Yield this rank's rows (B,) for each micro-step from ``first`` on; -1 is padding."""
        size, total = self.samples_per_step, self.num_samples
        order = Permutation(len(self.rows), seed=self.seed, epoch=self.epoch)
        whole = total // size
        block = max(1, _PLACES_AT_A_TIME // self.micro_batch_size)
        lane = self.rank * self.micro_batch_size + np.arange(self.micro_batch_size)
        for start in range(first, whole, block):
            steps = np.arange(start, min(start + block, whole))
            places = steps[:, None] * size + lane
            yield from order(places) if self.shuffle else places
        left = total - whole * size
        if left and first <= whole:
            # An even share for every rank, so that none but the very last samples leaves one idle.
            begin, end = (left * part // self.world_size for part in (self.rank, self.rank + 1))
            places = whole * size + np.arange(begin, end)
            indices = np.full(self.micro_batch_size, -1, dtype=np.int64)
            indices[: end - begin] = order(places) if self.shuffle else places
            yield indices

    def documents(self, sample: int) -> list[int]:
        """Return the numbers of the documents in a sample, for messages."""
        return self.rows.documents(sample)

    def state_dict(self) -> dict[str, Any]:
        """Return the place as plain data of constant size, the same on every rank.

        ``samples`` counts the samples of this epoch that were handed out, over all ranks.
        """
        return {
            "version": _STATE_VERSION,
            "epoch": self.epoch,
            "samples": min(self._step * self.samples_per_step, self.num_samples),
            "samples_per_step": self.samples_per_step,
            "samples_per_update": self.samples_per_update,
            "data": self._identity(),
        }

    def _identity(self) -> dict[str, str | int | bool]:
        return {**self.rows.fingerprint, "seed": self.seed, "shuffle": self.shuffle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state was saved, with as many ranks and workers as there are now.

        Raises:
            ValueError: The data is not what it was (its content, packing or seed), or the place
                does not fall between two micro-steps of the present size.
        """
        if state.get("version") != _STATE_VERSION:
            raise InvalidValueError(
                f"loader state version {state.get('version')!r}; this version of lightning_llm "
                f"reads version {_STATE_VERSION}."
            )
        self._check_identity(state["data"])
        self.epoch = state["epoch"]
        if self._trainer is None:
            self.seek(self.step_at(state["samples"]))
        else:
            align_with_trainer(self._trainer, self, state)

    def step_at(self, samples: int) -> int:
        """Return the micro-step of this epoch that comes after so many samples.

        Raises:
            ValueError: They end inside a micro-step.
        """
        if samples >= self.num_samples:
            return len(self)
        step, inside = divmod(samples, self.samples_per_step)
        if inside:
            raise InvalidValueError(
                f"cannot continue after {samples} samples of the epoch: micro_batch_size="
                f"{self.micro_batch_size} on {self.world_size} ranks takes {self.samples_per_step} "
                "at a time. Choose micro_batch_size and ranks so that their product divides it."
            )
        return step

    def _check_identity(self, saved: dict[str, Any]) -> None:
        now = self._identity()
        changed = [
            f"{key}: {saved.get(key)!r} in the checkpoint, {now.get(key)!r} now"
            for key in sorted(now.keys() | saved.keys())
            if saved.get(key) != now.get(key)
        ]
        if not changed:
            return
        message = "the data is not what the checkpoint was trained on: " + "; ".join(changed)
        if self.strict_resume:
            raise InvalidValueError(
                f"{message}. Restore the data, or set strict_resume=False to go on at the same "
                "number of samples of the new data."
            )
        warnings.warn(message, stacklevel=3)


class _Indices:
    """What a DataLoader asks for batches of indices."""

    def __init__(self, loader: TokenLoader, first: int) -> None:
        self._loader, self._first = loader, first

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return self._loader.indices(self._first)

    def __len__(self) -> int:
        return len(self._loader) - self._first


def place_of(trainer: Trainer | None) -> dict[str, Any]:
    """Return what a `TokenLoader` has to know of where it runs; nothing outside Lightning."""
    if trainer is None:
        return {}
    # Data-parallel ranks where the strategy tells them apart: tensor-parallel ranks of one group
    # read the same batches.
    ranks = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {
        "num_replicas": trainer.world_size,
        "rank": trainer.global_rank,
    }
    return {
        "rank": ranks["rank"],
        "world_size": ranks["num_replicas"],
        "pin_memory": trainer.strategy.root_device.type == "cuda",
        "trainer": trainer,
    }


def _pinned(value: Any) -> Any:
    return value.pin_memory() if isinstance(value, torch.Tensor) else value  # texts stay


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _leave_signals_to_the_rank(worker: int) -> None:
    """Outlive one request to stop: torchrun sends it to the rank's whole group of processes.

    The rank may want to finish its step first, for which it needs batches, and ends its workers
    itself; one that hangs, by a second SIGTERM.
    """

    def once(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), once)
