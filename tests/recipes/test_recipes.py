"""Every recipe trains two steps under the debug overlay, on a small local text."""

from __future__ import annotations

import csv
import json
import math
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
    # What needs rows, or somebody else's model or module, has tests of its own beside this file.
    if path.parent.name not in ("hardware", "finetune", "translation", "qa")
    and path.name not in ("debug.yaml", "byo_module.yaml")
)
OVERLAYS = sorted((RECIPES / "hardware").glob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


CODE = "def twice(number):\n    return number + number  # doubled\n" * 200
CHINESE = "春天来了,山上的花都开了。孩子们在河边跑来跑去,老人坐在树下喝茶,说着从前的事。\n" * 150

VECTORS = "".join(f"{word} {i} 1 {-i}\n" for i, word in enumerate(["def", "return", "number"]))


def debug_run(
    tmp_path: Path, *recipes: Path, content: str = CODE, more: tuple[str, ...] = ()
) -> int:
    text = tmp_path / "text.txt"
    text.write_text(content, encoding="utf-8")
    arguments = ["fit"]
    for path in (*recipes, RECIPES / "debug.yaml"):
        arguments += ["--config", str(path)]
    arguments += ["--data.init_args.train_files", json.dumps([str(text)])]
    if any(path.name == "tinystories_15m.yaml" for path in recipes):  # the hub's stories
        arguments += ["--data.init_args.dataset=null", "--data.init_args.val_split=null"]
    if any(path.name.startswith("llama") for path in recipes):  # the hub's vocabulary
        arguments += ['--data.init_args.tokenizer={"pretrained": null, "vocab_size": 300}']
    arguments += ["--data.init_args.cache_dir", str(tmp_path / "cache")]
    arguments += ["--data.init_args.val_fraction", "0.2"]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "run")]
    return main([*arguments, "--trainer.enable_progress_bar", "false", *more])


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_recipe_trains_under_the_debug_overlay(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glove.6B.300d.txt").write_text(VECTORS)
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


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.parametrize("algorithm", ["char", "word", "unigram", "byte"])
def test_quickstart_on_chinese_text_with_every_tokenizer(tmp_path: Path, algorithm: str) -> None:
    overlay = tmp_path / "chinese.yaml"
    tokenizer = {"algorithm": algorithm, "vocab_size": 400 if algorithm == "unigram" else None}
    prompts = {"prompts": ["春天", "孩子们在"], "max_new_tokens": 4}
    callbacks = [
        {"class_path": "lightning_llm.callbacks.PerplexityMonitor"},
        {"class_path": "lightning_llm.callbacks.SampleText", "init_args": prompts},
    ]
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
    logger["init_args"] = {"save_dir": str(tmp_path / "log")}
    overlay.write_text(
        yaml.safe_dump(
            {
                "trainer": {"callbacks": callbacks, "logger": logger},
                "data": {"init_args": {"tokenizer": tokenizer}},
            }
        )
    )
    more = ("--config", str(overlay))
    assert debug_run(tmp_path, RECIPES / "quickstart.yaml", content=CHINESE, more=more) == 0
    [metrics] = (tmp_path / "log").rglob("metrics.csv")
    with metrics.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val_bits_per_byte")]
    loss, bits = float(rows[-1]["val_loss"]), float(rows[-1]["val_bits_per_byte"])
    if algorithm == "byte":
        assert bits == pytest.approx(loss / math.log(2), rel=1e-4)
    if algorithm == "char":  # ideographs and the line end: nearly three bytes each
        assert loss / math.log(2) / 3 < bits < loss / math.log(2) / 2.7
    [samples] = (tmp_path / "log").rglob("samples.jsonl")
    written = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in written[-2:]] == prompts["prompts"]


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_overlay_only_sets_the_trainer(path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    assert set(content) == {"trainer"}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=name_of)
def test_recipe_opens_with_what_it_is_and_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert "{" not in "".join(line for line in lines if "${" not in line and line[:1] != "#")
