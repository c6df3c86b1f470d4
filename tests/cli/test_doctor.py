"""`lightning-llm doctor`: JSON alone on standard output, faults found, nothing left behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from lightning_llm.cli import main

FAULTY = """
import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader


class Faulty(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))

    def training_step(self, batch, batch_idx):
        logits = self.net(batch["input_ids"])
        # Every position sees the mean of its row: other documents, and the future.
        logits = self.net[1](self.net[0](batch["input_ids"]) + logits.mean((1, 2))[:, None, None])
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1),
                                                 batch["labels"][:, 1:].flatten())
        self.last = loss.item()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        rows = torch.arange(256).view(32, 8) % 16
        documents = torch.tensor([0, 0, 0, 1, 1, 1, -1, -1])
        return DataLoader([{"input_ids": r, "labels": r, "document_ids": documents} for r in rows],
                          batch_size=4)
"""


def recipe_of(folder: Path, model: str, data: dict[str, object]) -> Path:
    path = folder / "recipe.yaml"
    config = {"n_layers": 2, "dim": 32, "n_heads": 2, "max_seq_len": 32}
    options = {"init_args": {"config": config}} if model.startswith("lightning_llm") else {}
    path.write_text(
        yaml.safe_dump(
            {
                "trainer": {
                    "accelerator": "cpu",
                    "default_root_dir": str(folder / "run"),
                    "max_steps": 4,
                    "precision": "32-true",
                },
                "model": {"class_path": model, **options},
                "data": data,
            }
        )
    )
    return path


def report_of(capsys: pytest.CaptureFixture[str], recipe: Path, *options: str) -> dict[str, object]:
    arguments = ["--config", str(recipe), "--format", "json", "--measure_allocator", "false"]
    assert main(["doctor", *arguments, "--steps", "3", "--warmup", "2", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_a_sound_run_has_no_faults_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("the cat sat on a mat and the dog ran to the red house " * 2 + "\n") * 200
    (tmp_path / "text.jsonl").write_text(
        "".join(
            json.dumps({"text": line[: 20 + i % 60]}) + "\n"
            for i, line in enumerate(lines.splitlines())
        )
    )
    data = {
        "class_path": "lightning_llm.TextDataModule",
        "init_args": {
            "train_files": [str(tmp_path / "text.jsonl")],
            "tokenizer": {"algorithm": "char"},
            "seq_len": 32,
            "micro_batch_size": 4,
            "mask_documents": True,
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    recipe = recipe_of(tmp_path, "lightning_llm.CausalLM", data)
    report = report_of(capsys, recipe)
    assert report["document_leak"] is False
    assert report["causal"] is True
    assert report["host_syncs_per_step"] == 0, report["host_sync_places"]
    assert report["graph_breaks"] == report["recompiles"] == 0
    assert set(report["seconds"]) == {"data", "forward", "backward", "optimizer", "framework"}
    assert sum(report["seconds"].values()) == pytest.approx(report["step_seconds"])
    assert report["tokens_per_second"] * report["step_seconds"] == pytest.approx(4 * 32, rel=0.05)
    assert any("compile: true" in text for text in report["advice"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "recipe.yaml", "text.jsonl"]


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_the_faults_of_a_foreign_module_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty_package.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of(tmp_path, "faulty_package.Faulty", {"class_path": "faulty_package.Data"})
    allow = ("--allow_import", "faulty_package")
    report = report_of(capsys, recipe, *allow)
    assert report["document_leak"] is True
    assert report["causal"] is False
    assert report["host_syncs_per_step"] == 1
    [place] = [p for p in report["host_sync_places"] if p["between_log_points"]]
    assert "faulty_package.py" in place["where"]
    assert place["what"] == "item()"
    assert report["padding_fraction"] == 0.25
    advice = "\n".join(report["advice"])
    for part in ("documents leak", "what comes after", "host waits", "25% of all positions"):
        assert part in advice
    text = ["--config", str(recipe), "--measure_allocator", "false", "--steps", "2", *allow]
    assert main(["doctor", *text]) == 0
    assert re.search(r"^host syncs per step +1$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_code_that_does_not_compile_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking = FAULTY.replace(
        "self.net = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))",
        "self.net = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))\n"
        "        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))",
    ).replace('logits = self.net(batch["input_ids"])', "self.blocks[0](self.net[0].weight)", 1)
    breaking += """

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(8, 8))

    def forward(self, x):
        torch._dynamo.graph_break()
        return self.layer(x)
"""
    (tmp_path / "breaking_package.py").write_text(breaking)
    monkeypatch.syspath_prepend(tmp_path)
    data = {"class_path": "breaking_package.Data"}
    recipe = recipe_of(tmp_path, "breaking_package.Faulty", data)
    strategy = ["--trainer.strategy", "lightning_llm.strategies.SingleDeviceStrategy"]
    strategy += ["--trainer.strategy.init_args.compile", "{backend: eager}"]
    report = report_of(capsys, recipe, "--allow_import", "breaking_package", *strategy)
    assert report["graph_breaks"] == 1
    assert report["compiles"] is True
    assert report["tokens_per_second"] is None
    assert any("returns to Python" in text for text in report["advice"])


def test_too_few_warm_up_steps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty_package.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of(tmp_path, "faulty_package.Faulty", {"class_path": "faulty_package.Data"})
    arguments = ["--config", str(recipe), "--allow_import", "faulty_package", "--warmup", "1"]
    assert main(["doctor", *arguments]) == 1
    assert "warmup=1 must be at least 2" in capsys.readouterr().err
