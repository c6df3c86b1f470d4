"""One reading of the device at each log point, shared by all who log there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_llm.callbacks._lazy_sum import widest_dtype

Source = Callable[[], Tensor | None]
Count = Callable[[Any, Any], None]
_ATTRIBUTE = "_lightning_llm_log_point"


class LogPoint:
    """What is read from the device, and logged, once in ``log_every_n_steps`` optimizer steps.

    Modules and callbacks that keep values on the device join with a function that returns them.
    The first to ask at a log point has the values of all copied to the host, in one piece: the
    host waits for the device once, however many log.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}  # what was logged last, by name
        self._sources: dict[object, Source] = {}
        self._counts: dict[object, Count] = {}
        self._values: dict[object, list[float]] = {}
        self._read_at = -1
        self._logged: set[str] = set()
        self._shown: list[str] = []  # keys of Lightning's results that were logged in this step

    def __reduce__(self) -> tuple[type[LogPoint], tuple[()]]:
        """A copy, in another process say, begins empty: all join when a run starts."""
        return LogPoint, ()

    @staticmethod
    def of(trainer: Trainer) -> LogPoint:
        """The one of this trainer."""
        point: LogPoint | None = trainer.__dict__.get(_ATTRIBUTE)
        if point is None:
            point = trainer.__dict__[_ATTRIBUTE] = LogPoint()
        return point

    @staticmethod
    def lies_between(trainer: Trainer, before: int, step: int) -> bool:
        """Whether optimizer steps ``before + 1 .. step`` hold a log point."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step != before and every > 0 and step // every > before // every

    def join(self, owner: object, source: Source, count: Count | None = None) -> None:
        """Have ``source()``, a small tensor or ``None``, read at each log point.

        It is called before any of the values are used, in the order in which the owners joined,
        the same on all ranks: it may reduce over them.

        Args:
            owner: Who reads the values.
            source: Returns them.
            count: ``count(batch, outputs)`` adds the batch that ends now, and does nothing if the
                owner has added it already. Whichever callback reads first, the values then
                include this batch: nothing depends on the order of callbacks.
        """
        self._sources[owner] = source
        self._counts.pop(owner, None)
        if count is not None:
            self._counts[owner] = count
        self._read_at = -1

    def read(self, owner: object, step: int, batch: Any, outputs: Any) -> list[float]:
        """The values of ``owner``'s source at the end of the batch that took ``step``.

        Args:
            owner: Who asks.
            step: ``trainer.global_step``.
            batch: As given to ``on_train_batch_end``.
            outputs: As given to ``on_train_batch_end``.
        """
        if self._read_at != step:
            self._read_at = step
            for count in self._counts.values():
                count(batch, outputs)
            self._values = _to_host({name: source() for name, source in self._sources.items()})
        return self._values.pop(owner, [])

    def log(self, pl_module: LightningModule, values: dict[str, float], prog_bar: str = "") -> None:
        """``pl_module.log`` host numbers from ``on_train_batch_end``.

        Args:
            pl_module: The module.
            values: By name.
            prog_bar: Which of them any progress bar may show.
        """
        results = pl_module.trainer._results
        for name, value in values.items():
            tensor = torch.tensor(value, dtype=torch.float64)
            key = f"on_train_batch_end.{name}"
            if results is not None and key in results and key in self._logged:
                results.update_metrics(key, tensor, 1)  # all that is left of a second `log`
            else:
                pl_module.log(name, tensor, prog_bar=name == prog_bar, on_step=True, on_epoch=False)
                self._logged.add(key)
            self._shown.append(key)
        self.latest.update(values)

    def batch_started(self, trainer: Trainer) -> None:
        """Take what was logged out of what Lightning collects anew after every batch.

        It stays in ``trainer.callback_metrics`` and in the progress bar.
        """
        if not self._shown:
            return
        results = trainer._results
        for key in self._shown:
            if results is not None and key in results:
                results[key].has_reset = True
        self._shown = []


def _to_host(tensors: dict[object, Tensor | None]) -> dict[object, list[float]]:
    """The values of all tensors, one copy for each device."""
    found = [(owner, tensor) for owner, tensor in tensors.items() if tensor is not None]
    values: dict[object, list[float]] = {}
    by_device = sorted(found, key=lambda pair: str(pair[1].device))
    for device, group in groupby(by_device, key=lambda pair: pair[1].device):
        members = list(group)
        wide = widest_dtype(device)
        flat = torch.cat([tensor.detach().reshape(-1).to(wide) for _, tensor in members]).tolist()
        for owner, tensor in members:
            values[owner], flat = flat[: tensor.numel()], flat[tensor.numel() :]
    return values
