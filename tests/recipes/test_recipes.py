"""Every recipe trains two steps under the debug overlay, on a small local text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from lightning_llm.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"
RUNNABLE = sorted(
    path
    for path in RECIPES.rglob("*.yaml")
    # What needs rows, or a model or a module of somebody else, has tests of its own beside this file.
    if path.parent.name not in ("hardware", "finetune", "translation", "qa")
    and path.name not in ("debug.yaml", "byo_module.yaml")
)
OVERLAYS = sorted((RECIPES / "hardware").glob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


CODE = "def twice(number):\n    return number + number  # doubled\n" * 200
CHINESE = "春天来了,山上的花都开了。孩子们在河边跑来跑去,老人坐在树下喝茶,说着从前的事。\n" * 150


def debug_run(tmp_path: Path, *recipes: Path, content: str = CODE) -> int:
    text = tmp_path / "text.txt"
    text.write_text(content, encoding="utf-8")
    arguments = ["fit"]
    for path in (*recipes, RECIPES / "debug.yaml"):
        arguments += ["--config", str(path)]
    arguments += ["--data.init_args.train_files", json.dumps([str(text)])]
    arguments += ["--data.init_args.cache_dir", str(tmp_path / "cache")]
    arguments += ["--data.init_args.val_fraction", "0.2"]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "run")]
    return main([*arguments, "--trainer.enable_progress_bar", "false"])


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_recipe_trains_under_the_debug_overlay(tmp_path: Path, path: Path) -> None:
    assert debug_run(tmp_path, path) == 0
    checkpoints = list((tmp_path / "run").rglob("*.ckpt"))
    assert checkpoints
    assert torch.load(checkpoints[0], weights_only=True)["global_step"] == 2


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_quickstart_with_the_cpu_overlay(tmp_path: Path) -> None:
    assert debug_run(tmp_path, RECIPES / "quickstart.yaml", RECIPES / "hardware" / "cpu.yaml") == 0


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_quickstart_on_chinese_text(tmp_path: Path) -> None:
    assert debug_run(tmp_path, RECIPES / "quickstart.yaml", content=CHINESE) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "hf")
    assert tokenizer.decode(tokenizer(CHINESE)["input_ids"]) == CHINESE


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_overlay_only_sets_the_trainer(path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    assert set(content) == {"trainer"}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=name_of)
def test_recipe_opens_with_what_it_is_and_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert "{" not in "".join(line for line in lines if "${" not in line and line[:1] != "#")
