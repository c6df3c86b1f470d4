"""The log of a run in one folder, however often it is stopped, resumed and evaluated."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_commands import make_text, recipe

from lightning_llm.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def write_recipe(folder: Path, name: str) -> str:
    contents = recipe(folder)
    trainer = contents["trainer"]
    trainer |= {
        "default_root_dir": str(folder / name),
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 1,
    }
    trainer["logger"]["init_args"] |= {"name": "", "version": "log"}
    trainer["callbacks"][1]["init_args"] |= {
        "filename": "{step}",
        "every_n_train_steps": 4,
        "save_top_k": -1,
    }
    sampler = {"prompts": ["the"], "max_new_tokens": 1, "temperature": 0.0}
    trainer["callbacks"].append(
        {"class_path": "lightning_llm.callbacks.SampleText", "init_args": sampler}
    )
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(contents))
    return str(path)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log" / "metrics.csv").open(newline="") as file:
        return [
            {name: row[name] for name in ("step", "train_loss", "val_loss")}
            for row in csv.DictReader(file)
            if row["train_loss"] or row["val_loss"]
        ]


def sampled(folder: Path) -> list[int]:
    lines = (folder / "log" / "samples.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_no_row_is_lost_and_none_is_there_twice(tmp_path: Path, recwarn: Any) -> None:
    make_text(tmp_path / "text.txt", lines=900)
    whole, parts = write_recipe(tmp_path, "whole"), write_recipe(tmp_path, "parts")
    assert main(["fit", "--config", whole, "--trainer.max_steps", "12"]) == 0
    assert main(["fit", "--config", parts, "--trainer.max_steps", "8"]) == 0
    # From the earlier checkpoint: steps 5 to 8 are taken and logged again.
    again = ["--ckpt_path", str(tmp_path / "parts" / "checkpoints" / "step=4.ckpt")]
    assert main(["fit", "--config", parts, "--trainer.max_steps", "12", *again]) == 0
    rows = rows_of(tmp_path / "parts")
    assert rows == rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows] == ["1", "3", "3", "5", "7", "7", "9", "11", "11"]
    assert sampled(tmp_path / "parts") == sampled(tmp_path / "whole")
    assert not any("will be deleted" in str(warning.message) for warning in recwarn)

    last = ["--ckpt_path", str(tmp_path / "parts" / "checkpoints" / "step=12.ckpt")]
    assert main(["validate", "--config", parts, *last]) == 0
    assert rows_of(tmp_path / "parts")[: len(rows)] == rows
