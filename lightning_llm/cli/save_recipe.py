"""The recipe with all its defaults, kept with the run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override


class SaveRecipe(SaveConfigCallback):
    """Lightning's callback, which needs a logger with a folder, for one without as well.

    The recipe goes to ``config.yaml`` in the logger's folder, or in ``trainer.default_root_dir``
    where the logger keeps everything elsewhere, as MLflow's does in a database.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.log_dir is not None:  # on every rank: it broadcasts
            super().setup(trainer, pl_module, stage)
        elif trainer.is_global_zero and not self.already_saved:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            path = str(folder / self.config_filename)
            self.parser.save(self.config, path, skip_none=False, overwrite=self.overwrite)
            self.already_saved = True
