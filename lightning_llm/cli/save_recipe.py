"""The recipe with all its defaults, kept with the run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

_MARK = "# The recipe of this run with all defaults, written by lightning-llm.\n"
_OTHER_NAME = "run_config.yaml"


class SaveRecipe(SaveConfigCallback):
    """Lightning's callback, which needs a logger with a folder, for one without as well.

    The recipe goes to ``config.yaml`` in the logger's folder, or in ``trainer.default_root_dir``
    where the logger keeps everything elsewhere, as MLflow's does in a database. A ``config.yaml``
    there that no run has written is somebody's own file and stays: the recipe then goes to
    ``run_config.yaml``.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        log_dir = trainer.log_dir  # on every rank: it broadcasts
        folder = Path(trainer.default_root_dir if log_dir is None else log_dir)
        if trainer.is_global_zero:
            self._choose_name(folder)
        if log_dir is not None:
            super().setup(trainer, pl_module, stage)
        elif trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            path = str(folder / self.config_filename)
            self.parser.save(self.config, path, skip_none=False, overwrite=self.overwrite)
            self.already_saved = True
        if trainer.is_global_zero and (file := folder / self.config_filename).is_file():
            file.write_text(_MARK + file.read_text(encoding="utf-8"), encoding="utf-8")

    def _choose_name(self, folder: Path) -> None:
        file = folder / self.config_filename
        if not file.is_symlink() and not file.exists():
            return
        if not file.is_symlink() and _is_of_a_run(file):
            return
        self.config_filename = _OTHER_NAME
        other = folder / _OTHER_NAME
        if other.is_symlink():
            other.unlink()  # a link would be followed to a file that is not of this run
        rank_zero_warn(
            f"{file} is not a recipe that a run has saved, so it stays as it is; the recipe of "
            f"this run is kept as {other}"
        )


def _is_of_a_run(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.readline() == _MARK
