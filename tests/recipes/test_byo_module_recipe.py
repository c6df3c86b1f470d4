"""The recipe for somebody else's module trains one that knows nothing of this package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lightning_llm.cli import main

RECIPE = Path(__file__).parents[2] / "recipes" / "byo_module.yaml"
LOGS = """        self.log("val_loss", self.loss(batch))

    def conf"""
PACKAGE = """
import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader


class MyModule(L.LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Embedding(16, width), torch.nn.Linear(width, 16))

    def loss(self, batch):
        logits = self.net(batch["input_ids"])[:, :-1]
        targets = batch["labels"][:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class MyData(L.LightningDataModule):
    def loader(self):
        rows = torch.arange(64).view(8, 8) % 16
        return DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=2)

    train_dataloader = val_dataloader = loader
"""


# The same as a tutorial writes it: (x, y) batches, and a step that only logs its loss.
ON_PAIRS = (
    PACKAGE.replace('batch["input_ids"])[:, :-1]', "batch[0])")
    .replace('batch["labels"][:, 1:].flatten()', "batch[1].flatten()")
    .replace("        return self.loss(batch)\n\n    def conf", LOGS)
    .replace('{"input_ids": row, "labels": row} for', "(row[:-1], row[1:]) for")
)


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.parametrize("package", [PACKAGE, ON_PAIRS], ids=["returns", "logs"])
def test_a_foreign_module_trains_once_its_package_is_allowed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    (tmp_path / "my_package.py").write_text(package)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(RECIPE)])
    assert "my_package" in capsys.readouterr().err
    arguments = ["fit", "--config", str(RECIPE), "--allow_import", "my_package"]
    arguments += ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "2"]
    arguments += ["--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert main([*arguments, "--trainer.enable_progress_bar", "false"]) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "model.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    metrics = next((tmp_path / "run").rglob("events.out.tfevents.*"), None)
    metrics = metrics or next((tmp_path / "run").rglob("metrics.csv"))
    assert b"val_perplexity" in metrics.read_bytes()
