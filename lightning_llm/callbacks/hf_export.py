"""Export to the Hugging Face layout at the end of training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_llm.errors import InvalidTypeError, InvalidValueError


class HFExport(Callback):
    """Calls ``pl_module.save_pretrained(directory)`` when ``fit`` has ended without an error.

    All ranks make the call, since gathering sharded weights takes all of them; the module is
    expected to write on rank zero only. What would fail after days of training is checked before
    the first step: that the module can export, that the directory can be written, and what the
    module's own ``check_export(directory)`` finds, where it has one.

    Args:
        directory: Where to write. By default ``hf`` in the logger's directory, or ``hf_export``
            in ``trainer.default_root_dir`` when there is no logger.
        tokenizer: Anything with ``save_pretrained(directory)``, written beside the model. A module
            that has a ``tokenizer`` exports, and checks, this one in its place.
        export_fn: ``export_fn(pl_module, directory)``, called instead of ``save_pretrained``.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        tokenizer: Any = None,
        export_fn: Callable[[Any, Path], Any] | None = None,
    ) -> None:
        super().__init__()
        self.directory = Path(directory) if directory is not None else None
        self.tokenizer = tokenizer
        self.export_fn = export_fn

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.export_fn is None and not callable(getattr(pl_module, "save_pretrained", None)):
            raise InvalidTypeError(
                f"HFExport calls save_pretrained(directory), which {type(pl_module).__name__} does "
                "not have. Add that method, or pass HFExport(export_fn=...), called as "
                "export_fn(pl_module, directory)."
            )
        directory = self._resolved(trainer)  # on every rank: it may broadcast
        if self.export_fn is None and callable(getattr(pl_module, "check_export", None)):
            with self._own_tokenizer(pl_module):
                pl_module.check_export(directory)  # type: ignore[operator]
        if trainer.is_global_zero:
            _probe(directory)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info("HFExport writes nothing in a fast_dev_run")
            return
        directory = self._resolved(trainer)
        if self.export_fn is not None:
            self.export_fn(pl_module, directory)
        else:
            with self._own_tokenizer(pl_module):
                pl_module.save_pretrained(directory)  # type: ignore[operator]
        has_its_own = self.export_fn is None and hasattr(pl_module, "tokenizer")
        if self.tokenizer is not None and trainer.is_global_zero and not has_its_own:
            self.tokenizer.save_pretrained(directory)
        trainer.strategy.barrier("HFExport")
        rank_zero_info(f"Exported the model to {directory.resolve()}")

    @contextmanager
    def _own_tokenizer(self, pl_module: LightningModule) -> Iterator[None]:
        """Let a module that exports its tokenizer, and checks it, do so with the given one."""
        if self.tokenizer is None or not hasattr(pl_module, "tokenizer"):
            yield
            return
        own = pl_module.tokenizer
        pl_module.tokenizer = self.tokenizer
        try:
            yield
        finally:
            pl_module.tokenizer = own

    def _resolved(self, trainer: Trainer) -> Path:
        if self.directory is not None:
            return self.directory
        log_dir = trainer.log_dir if trainer.loggers else None
        if log_dir is not None:
            return Path(log_dir) / "hf"
        return Path(trainer.default_root_dir) / "hf_export"


def _probe(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InvalidValueError(
            f"HFExport cannot write to directory={str(directory)!r}: {error}. Choose another one."
        ) from error
