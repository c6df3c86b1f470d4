"""A misspelt key, class or value at any level of a recipe: a line says where, and the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_llm.cli.training  # noqa: F401  # its log handler keeps the stderr it finds
from lightning_llm.cli import main
from lightning_llm.cli.parse_errors import check_strategy, find_problem

CHECKPOINTS = "lightning.pytorch.callbacks.ModelCheckpoint"


def recipe() -> dict[str, Any]:
    def part(class_path: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": class_path, "init_args": arguments}

    return {
        "trainer": {
            "max_steps": 1,
            "logger": part("lightning.pytorch.loggers.CSVLogger", save_dir="run"),
            "strategy": part("lightning_llm.strategies.SingleDeviceStrategy", compile=False),
            "callbacks": [
                part("lightning_llm.callbacks.HFExport", directory="hf"),
                part(CHECKPOINTS, dirpath="checkpoints"),
            ],
        },
        "model": part(
            "lightning_llm.CausalLM",
            config={"n_layers": 1, "dim": 32, "n_heads": 2},
            optimizer=part("lightning_llm.optim.AdamW", lr=1e-3),
            lr_scheduler=part("lightning_llm.optim.WarmupCosine", warmup_steps=1),
        ),
        "data": part(
            "lightning_llm.TextDataModule",
            train_files="*.txt",
            tokenizer={"algorithm": "byte"},
        ),
    }


def refusal(tmp_path: Path, capsys: Any, content: dict[str, Any], *arguments: str) -> str:
    """Return what `fit` writes when it refuses a recipe."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(path), *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip()


def at(content: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the mapping at a path of keys and list places."""
    found: Any = content
    for part in path.split("/") if path else []:
        found = found[int(part) if part.isdigit() else part]
    return found


MODEL, DATA = "model/init_args", "data/init_args"


@pytest.mark.parametrize(
    ("path", "wrong", "value", "place", "right"),
    [
        ("", "trianer", {"max_steps": 1}, "trianer", "trainer.max_steps"),
        ("trainer", "max_stepz", 1, "trainer", "trainer.max_steps"),
        (MODEL, "label_smoothin", 0.1, "model (lightning_llm.CausalLM)", "label_smoothing"),
        (f"{MODEL}/config", "n_layres", 1, "'config'", "config.n_layers"),
        (f"{MODEL}/optimizer/init_args", "weight_decy", 0, "AdamW", "weight_decay"),
        (f"{MODEL}/lr_scheduler/init_args", "warmup_stps", 1, "WarmupCosine", "warmup_steps"),
        (DATA, "micro_batch_sise", 1, "data (lightning_llm.TextDataModule)", "micro_batch_size"),
        (f"{DATA}/tokenizer", "vocab_sise", 300, "'tokenizer'", "tokenizer.vocab_size"),
        ("trainer/callbacks/0/init_args", "directry", "x", "HFExport", "directory"),
        ("trainer/callbacks/1/init_args", "dirpth", "x", "ModelCheckpoint", "dirpath"),
        ("trainer/logger/init_args", "save_dirr", "x", "CSVLogger", "save_dir"),
        ("trainer/strategy/init_args", "compil", True, "SingleDeviceStrategy", "compile"),
        ("data", "init_arg", {}, "data", "init_args"),
        ("trainer/callbacks/0", "init_arg", {"a": 1}, "HFExport", "init_args"),
        (f"{MODEL}/optimizer", "init_arg", {}, "optimizer", "init_args"),
    ],
)
def test_a_misspelt_key_of_a_recipe(
    tmp_path: Path, capsys: Any, path: str, wrong: str, value: Any, place: str, right: str
) -> None:
    content = recipe()
    at(content, path)[wrong] = value
    problem, hint = refusal(tmp_path, capsys, content).splitlines()
    assert problem.startswith("lightning-llm fit: error: ")
    assert place in problem
    assert wrong in problem or right == "init_args"
    assert hint == f"did you mean {right!r}?"


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["--trainer.max_stepz", "3"], "trainer.max_steps"),
        (["--max_steps", "3"], "trainer.max_steps"),
        (["--seq_len", "3"], "data.init_args.seq_len"),
        (["--n_layers", "3"], "model.init_args.config.n_layers"),
        (["--confg", "x.yaml"], "config"),
        (["--model.init_args.config.n_layres", "3"], "config.n_layers"),
        (["--model.init_args.label_smoothin", "3"], "label_smoothing"),
        (["--model.init_args.optimizer.init_args.weight_decy", "3"], "weight_decay"),
        (["--data.seq_length", "3"], "seq_len"),
        (["--data.init_args.tokenizer.vocab_sise", "3"], "tokenizer.vocab_size"),
        (["--data", "TextDataModul"], "TextDataModule"),
        (["--trainer.callbacks+=PerplexityMonitr"], "PerplexityMonitor"),
        (["--resume", "atuo"], "auto"),
        (["--trainer.precision", "bf16-mixd"], "bf16-mixed"),
        (["--data.init_args.packing", "bestfit"], "best_fit"),
    ],
)
def test_a_misspelt_argument(tmp_path: Path, capsys: Any, arguments: list[str], right: str) -> None:
    assert refusal(tmp_path, capsys, recipe(), *arguments).endswith(f"did you mean {right!r}?")


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("model", "lightning_llm.CausalML", "lightning_llm.CausalLM"),
        ("data", "lightning_llm.TextDataModul", "lightning_llm.TextDataModule"),
        ("data", "lightnin_llm.TextDataModule", "lightning_llm"),
        (f"{MODEL}/optimizer", "lightning_llm.optim.AdmW", "lightning_llm.optim.AdamW"),
        ("trainer/callbacks/0", "lightning_llm.callback.HFExport", "lightning_llm.callbacks"),
        ("trainer/callbacks/1", CHECKPOINTS.replace("Check", "Chek"), CHECKPOINTS),
    ],
)
def test_a_misspelt_class(tmp_path: Path, capsys: Any, path: str, wrong: str, right: str) -> None:
    content = recipe()
    at(content, path)["class_path"] = wrong
    problem, hint = refusal(tmp_path, capsys, content).splitlines()
    assert wrong in problem
    assert hint == f"did you mean {right!r}?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.init_args.config.n_layers", "abc"],
            "model (lightning_llm.CausalLM): config.n_layers: Expected int. Got value: abc",
        ),
        (
            ["--data.init_args.train_files", "{a: 3}"],
            "train_files: Expected str or list. Given value: {'a': 3}",
        ),
        (["--trainer.enable_progress_bar", "maybe"], "Expected bool. Given value: maybe"),
        (["--config", "nowhere.yaml"], "File does not exist"),
        (["--something_else", "3"], "unrecognized arguments: --something_else 3"),
    ],
)
def test_without_a_close_word_the_problem_alone_is_said(
    tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    errors = refusal(tmp_path, capsys, recipe(), *arguments)
    assert message in errors
    assert "\n" not in errors


def test_a_misspelt_strategy() -> None:
    check_strategy("fsdp2")
    check_strategy("auto")
    check_strategy(object())
    with pytest.raises(ValueError, match=r"'fdsp2' is unknown; did you mean 'fsdp2'\?"):
        check_strategy("fdsp2")
    with pytest.raises(ValueError, match=r"did you mean 'lightning_llm\.strategies\.DDPStrategy'"):
        check_strategy("DDPStrategy")
    with pytest.raises(ValueError, match=r"'quantum' is unknown; known are auto, ddp"):
        check_strategy("quantum")


@pytest.mark.parametrize(
    ("key", "value", "keys"),
    [
        ("data.init_args.tokenizer", "char", "tokenizer.algorithm, tokenizer.vocab_size, "),
        ("model.init_args.config", "cpu-10m", "config.vocab_size, config.max_seq_len, "),
    ],
)
def test_a_value_for_a_group_is_answered_with_its_keys(
    tmp_path: Path, capsys: Any, key: str, value: str, keys: str
) -> None:
    said = refusal(tmp_path, capsys, recipe(), f"--{key}", value)
    assert f"{key.rpartition('.')[2]} takes no value but has keys: {keys}" in said


def test_null_is_null_at_any_depth(tmp_path: Path, capsys: Any) -> None:
    content = recipe()
    content["data"]["init_args"] |= {"tokenizer": {"vocab_size": 300}, "cache_dir": "cache"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    keys = ("tokenizer.vocab_size", "cache_dir")
    nulls = [part for key in keys for part in (f"--data.init_args.{key}", "null")]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(path), *nulls, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert printed["tokenizer"]["vocab_size"] is None
    assert printed["cache_dir"] is None


def test_an_unknown_message_is_passed_on() -> None:
    assert str(find_problem("something new")) == "something new"


@pytest.mark.parametrize("command", ["generate", "export"])
def test_commands_without_a_recipe_suggest_too(capsys: Any, command: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--checkpont", "x.ckpt"])
    assert "did you mean 'checkpoint'?" in capsys.readouterr().err


def test_what_a_class_refuses_is_said_also_where_a_key_takes_several_types(
    tmp_path: Path, capsys: Any
) -> None:
    content = recipe()
    sizes = {"replicate_size": -1, "prefetch": -1}
    strategy = {"class_path": "lightning_llm.strategies.FSDP2Strategy", "init_args": sizes}
    content["trainer"]["strategy"] = strategy
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(path)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lightning-llm fit: error: FSDP2Strategy: ")
    assert "replicate_size=-1" in last
    assert "prefetch=-1" in last
    assert "Namespace" not in last


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"a": "x.txt", "b": ["y.txt"]}, "write one flat list: train_files: ['x.txt', 'y.txt']"),
        ([["x.txt"], ["y.txt"]], "write one flat list of paths and globs"),
    ],
)
def test_files_are_one_flat_list(tmp_path: Path, capsys: Any, given: Any, hint: str) -> None:
    content = recipe()
    content["data"]["init_args"]["train_files"] = given
    first, second = refusal(tmp_path, capsys, content).splitlines()
    assert "train_files: Expected str" in first
    assert second == hint
