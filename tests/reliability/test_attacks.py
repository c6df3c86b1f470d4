"""Recipes and checkpoints are data: nothing in them runs, hangs, or silently wins."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_llm.cli import main
from lightning_llm.cli.checkpoint import load_trained
from lightning_llm.cli.recipe_text import MAX_NODES, RecipeTextError, check_recipe_text
from lightning_llm.module import CausalLM
from lightning_llm.plugins import AtomicCheckpointIO

RECIPE = """\
trainer:
  max_steps: 1
model:
  class_path: lightning_llm.CausalLM
  init_args:
    config:
      n_heads: 1
      dim: 32
data:
  class_path: lightning_llm.TextDataModule
  init_args:
    train_files: [x.txt]
    seq_len: 16
    micro_batch_size: 1
"""


def bomb(levels: int = 9, each: int = 9) -> str:
    lines = ["l0: &l0 [x]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * each)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", r"line 5: the key 'c' was given on line 3 already"),
        ("{a: 1, b: [{x: 1, x: 2}]}", "line 1: the key 'x' was given on line 1"),
        (bomb(), rf"line 6: .* more than {MAX_NODES:,} values"),
        ("a: &a\n  b: *a\n", r"line 2: \*a refers to what contains it"),
        ("a: " + "[" * 101 + "]" * 101, "nested more than 100 levels"),
        ("[" * 50_000, "nested|nesting"),
        ("a: |\n" + "  x\n" * 300_000, r"1,200,005 bytes; a recipe has at most 1,048,576"),
    ],
)
def test_texts_that_are_refused_at_once(text: str, message: str) -> None:
    import yaml

    start = time.perf_counter()
    with pytest.raises(yaml.YAMLError, match=message):
        check_recipe_text(text)
    assert time.perf_counter() - start < 2


def test_honest_texts_pass() -> None:
    check_recipe_text(RECIPE)
    check_recipe_text("a: &x {k: 1}\nb: {<<: *x, k: 2}\nc: [*x, *x]\nd: k\ne: k\n? [1, 2]\n: k\n")
    check_recipe_text("")
    with pytest.raises(RecipeTextError, match="line 2"):
        check_recipe_text("a: 1\na: 1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace("dim: 32", "dim: 32\n      dim: 64"), "line 9: the key 'dim'"),
        (RECIPE + "  extra:\n" + "\n".join("    " + x for x in bomb().splitlines()), "values"),
    ],
)
def test_the_command_line_names_file_and_line(
    tmp_path: Path, capsys: Any, text: str, message: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(tmp_path / "bad.yaml")])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert "bad.yaml" in error


@pytest.mark.parametrize("where", ["model", "optimizer", "callback", "tag"])
def test_classes_outside_the_allowlist_are_refused_before_import(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = {
        "model": RECIPE.replace("lightning_llm.CausalLM", "evil_module.X"),
        "optimizer": RECIPE.replace(
            "    config:", "    optimizer: {class_path: evil_module.X}\n    config:"
        ),
        "callback": RECIPE.replace(
            "  max_steps", "  callbacks: [{class_path: evil_module.X}]\n  max_steps"
        ),
        "tag": RECIPE + f"x: !!python/object/apply:os.mkdir [{tmp_path / 'ran'}]\n",
    }[where]
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(tmp_path / "bad.yaml")])
    assert caught.value.code == 2
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "ran").exists()
    assert "evil_module" in capsys.readouterr().err or where == "tag"


def test_hyperparameters_of_a_checkpoint_build_nothing(tmp_path: Path) -> None:
    """The file is data; names of classes and functions in it are not looked up."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    module = CausalLM({"n_layers": 1, "dim": 16, "n_heads": 1, "vocab_size": 9, "max_seq_len": 8})
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": {
            "optimizer": "os.system",
            "_class_path": "evil_module.X",
            "_instantiator": "os.system",
        },
    }
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "c.ckpt")
    sys.path.insert(0, str(tmp_path))
    try:
        loaded = load_trained(tmp_path / "c.ckpt", device="cpu")
    finally:
        sys.path.remove(str(tmp_path))
    assert type(loaded) is CausalLM
    assert loaded.optimizer is None
    assert "evil_module" not in sys.modules
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])


@pytest.mark.parametrize("instantiator", ["os.system", "lightning.pytorch.cli.instantiate_module"])
@pytest.mark.parametrize("opened", [True, False])
def test_loading_builds_only_the_class_that_is_asked(
    tmp_path: Path, instantiator: str, opened: bool
) -> None:
    """`load_from_checkpoint` of a file whose hyperparameters name functions to call."""
    mark = tmp_path / "ran"
    (tmp_path / "hubconf.py").write_text(f"import os\nos.mkdir({str(mark)!r})\ndef build(): ...\n")
    call = {"repo_or_dir": str(tmp_path), "model": "build", "source": "local"}
    config = {"n_layers": 1, "dim": 16, "n_heads": 1, "vocab_size": 9, "max_seq_len": 8}
    module = CausalLM(config)
    checkpoint: dict[str, Any] = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": module.state_dict(),
        "hyper_parameters": {
            "config": config,
            "optimizer": {"class_path": "torch.hub.load", "init_args": call},
            "_class_path": "evil_module.X",
            "_instantiator": instantiator,
        },
    }
    module.on_save_checkpoint(checkpoint)
    path = tmp_path / "c.ckpt"
    torch.save(checkpoint, path)
    with path.open("rb") as file:
        loaded = CausalLM.load_from_checkpoint(file if opened else path)
    assert type(loaded) is CausalLM
    assert opened or loaded.optimizer is None
    assert not mark.exists()
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])


def test_loading_runs_no_code_and_reads_no_address(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    for path, options in (
        (tmp_path / "evil.ckpt", {}),
        (tmp_path / "evil.ckpt", {"strict": False}),
    ):
        with pytest.raises(Exception, match=r"[Ww]eights.only|plain data"):
            CausalLM.load_from_checkpoint(path, **options)
    with pytest.raises(ValueError, match=r"weights_only=False would run code"):
        CausalLM.load_from_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    with pytest.raises(ValueError, match="addresses are not read"):
        CausalLM.load_from_checkpoint("http://127.0.0.1:1/evil.ckpt")
    assert not (tmp_path / "ran").exists()


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("command", ["generate", "export", "fit"])
def test_pickled_code_in_a_checkpoint_is_refused(tmp_path: Path, capsys: Any, command: str) -> None:
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    (tmp_path / "x.txt").write_text("some text that is long enough for a few rows\n" * 20)
    text = RECIPE.replace("x.txt", str(tmp_path / "x.txt")).replace(
        "    seq_len", "    tokenizer: {algorithm: byte}\n    val_fraction: 0.0\n    seq_len"
    )
    text = text.replace(
        "  max_steps", f"  accelerator: cpu\n  default_root_dir: {tmp_path}\n  max_steps"
    )
    (tmp_path / "r.yaml").write_text(text + f"    cache_dir: {tmp_path}\n")
    evil = str(tmp_path / "evil.ckpt")
    arguments = {
        "generate": ["--checkpoint", evil, "--prompt", "x"],
        "export": ["--checkpoint", evil, "--output", str(tmp_path / "out")],
        "fit": ["--config", str(tmp_path / "r.yaml"), "--ckpt_path", evil],
    }[command]
    assert main([command, *arguments]) == 1
    assert "cannot be read as a checkpoint of plain data" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
