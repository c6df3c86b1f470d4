"""The overlays for several devices, on two processes that `fit` starts itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_llm.cli.checkpoint import load_trained

RECIPES = Path(__file__).parents[2] / "recipes"
CODE = "def twice(number):\n    return number + number  # doubled\n" * 200
STRATEGY = "--trainer.strategy.init_args"

# What an overlay asks of a machine, put in terms of two processes of this one.
CHANGED = {
    "ddp": [],
    "fsdp2_tp": [],
    "fsdp2_cp": [],
    "hsdp_multinode": ["--trainer.num_nodes=1"],
    "fp8": [f"{STRATEGY}.compile=false", "--trainer.plugins.init_args.min_dim=32"],
}


def test_every_overlay_of_several_devices_is_tried() -> None:
    several = {
        path.stem
        for path in (RECIPES / "hardware").glob("*.yaml")
        if yaml.safe_load(path.read_text())["trainer"].get("devices") != 1
    }
    assert several - {"cpu"} == CHANGED.keys() | {"fsdp2"}  # that one: tests/cli


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_quickstart_on_two_processes(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text(CODE)
    recipes = [RECIPES / "quickstart.yaml", RECIPES / "debug.yaml"]
    command = [sys.executable, "-m", "lightning_llm.cli", "fit"]
    for path in (*recipes, RECIPES / "hardware" / f"{name}.yaml"):
        command += ["--config", str(path)]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2"]
    command += [f"--trainer.default_root_dir={tmp_path / 'run'}"]
    command += [f"--data.init_args.train_files={json.dumps([str(tmp_path / 'text.txt')])}"]
    command += [f"--data.init_args.cache_dir={tmp_path / 'cache'}", *CHANGED[name]]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / "run" / "checkpoints" / "model.ckpt"
    assert checkpoint.is_dir() == (name != "ddp")
    load_trained(checkpoint, device="cpu")
    assert (tmp_path / "run" / "hf" / "model.safetensors").is_file()
    samples = (tmp_path / "run").rglob("samples.jsonl")
    assert sum(len(file.read_text().splitlines()) for file in samples) == 2  # by one rank
    assert "val_perplexity" in done.stderr + done.stdout
