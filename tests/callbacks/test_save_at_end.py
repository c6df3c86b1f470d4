"""``SaveAtEnd``: the last step is kept, and ``last.ckpt`` is always that of the last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_llm.callbacks import SaveAtEnd
from lightning_llm.plugins import AtomicCheckpointIO
from lightning_llm.plugins.io.sharded_save import remove_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]
STEPS = 10


class Table(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        self.log("value", float(self.global_step % 4))  # lowest at step 8, a few before the end
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Folders(AtomicCheckpointIO):
    """Checkpoints that are folders, as shards are."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if Path(path).is_symlink():
            Path(path).unlink()
        Path(path).mkdir(exist_ok=True)
        torch.save(checkpoint, Path(path) / "meta.pt")

    def remove_checkpoint(self, path: Any) -> None:
        remove_folder(Path(path))


def fit(folder: Path, plugin: Any = None, ckpt: Path | None = None, **options: Any) -> None:
    steps = options.pop("steps", STEPS)
    keep = ModelCheckpoint(folder, "model-{step}", every_n_train_steps=3, **options)
    pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=plugin,
        callbacks=[keep, SaveAtEnd()],
    ).fit(Table(), DataLoader(torch.ones(40, 1), batch_size=2), ckpt_path=ckpt)  # type: ignore[arg-type]


def step_of(path: Path) -> int:
    file = path / "meta.pt" if path.is_dir() else path
    return int(torch.load(file, weights_only=True)["global_step"])


@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"save_last": "link"},
        {"save_last": True},
        {"save_last": "link", "save_top_k": -1},
        {"save_last": True, "save_top_k": 0},
        {"save_last": "link", "monitor": "value"},
        {"save_last": True, "monitor": "value"},
    ],
)
def test_last_is_the_last_step(tmp_path: Path, folders: bool, options: dict[str, Any]) -> None:
    fit(tmp_path, Folders() if folders else AtomicCheckpointIO(), **options)
    last = tmp_path / "last.ckpt"
    assert step_of(last) == STEPS
    assert last.is_symlink() is (options["save_last"] == "link" and "monitor" not in options)
    kept = {path.name: step_of(path) for path in tmp_path.glob("model*.ckpt")}
    if "monitor" in options:
        [(name, step)] = kept.items()  # the one that the metric chose, as it was
        assert name == f"model-step={step}.ckpt"
        assert step < STEPS
    elif options.get("save_top_k") != 0:
        assert kept[f"model-step={STEPS}.ckpt"] == STEPS


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_resumed_run_replaces_the_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    plain = {"save_last": "link", "save_top_k": -1}  # of plain Lightning, which writes in place
    fit(tmp_path, **plain, steps=6)
    fit(tmp_path, **plain, ckpt=tmp_path / "last.ckpt")
    assert step_of(tmp_path / "last.ckpt") == STEPS
    assert step_of(tmp_path / "model-step=6.ckpt") == 6
