"""One of several callbacks of a recipe is changed by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_llm.cli import main
from tests.cli.test_commands import make_text, recipe

SAMPLE = {
    "class_path": "lightning_llm.callbacks.SampleText",
    "init_args": {"prompts": ["def "], "max_new_tokens": 3},
}


def written(folder: Path) -> list[str]:
    make_text(folder / "text.txt")
    contents = recipe(folder)
    contents["trainer"]["callbacks"].insert(0, SAMPLE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(contents))
    return ["--config", str(folder / "recipe.yaml")]


def printed(arguments: list[str], capsys: Any) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0
    output, errors = capsys.readouterr()  # commands with a report keep standard output for it
    trainer: dict[str, Any] = yaml.safe_load(output or errors)["trainer"]
    return trainer


@pytest.mark.parametrize("command", ["fit", "validate", "plan", "doctor"])
def test_each_command_takes_overrides_by_name(tmp_path: Path, capsys: Any, command: str) -> None:
    config = written(tmp_path)
    before = printed([command, *config], capsys)
    changes = ["--trainer.callbacks.SampleText.prompts", '["Once", "Then"]']
    changes += ["--trainer.callbacks.ModelCheckpoint.init_args.filename=other"]
    changes += ["--trainer.logger.CSVLogger.name", "mine"]
    after = printed([command, *config, *changes], capsys)
    before["callbacks"][0]["init_args"]["prompts"] = ["Once", "Then"]
    before["callbacks"][2]["init_args"]["filename"] = "other"
    before["logger"]["init_args"]["name"] = "mine"
    logger = after["logger"]
    after["logger"] = logger[0] if isinstance(logger, list) else logger
    assert after == before


def test_fit_samples_the_text_that_was_asked_for(tmp_path: Path, capsys: Any) -> None:
    asked = ["--trainer.callbacks.SampleText.prompts", '["the cat"]']
    taken_out = ["--trainer.callbacks.PerplexityMonitor", "null"]
    assert main(["fit", *written(tmp_path), *asked, *taken_out]) == 0
    output = "".join(capsys.readouterr())
    assert "the cat" in output
    assert "def " not in output
    [saved] = (tmp_path / "run").rglob("config.yaml")
    callbacks = yaml.safe_load(saved.read_text())["trainer"]["callbacks"]
    assert [one["class_path"].rpartition(".")[2] for one in callbacks] == [
        "SampleText",
        "ModelCheckpoint",
    ]
    assert callbacks[0]["init_args"]["prompts"] == ["the cat"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["SampelText.prompts", "[a]"], "did you mean 'SampleText'"),
        (["EarlyStopping.monitor", "x"], "there are SampleText, PerplexityMonitor, ModelCheck"),
        (["SampleText", "5"], "name an argument"),
        (["SampleText.prompts"], "needs a value"),
        (["SampleText[1].prompts", "[a]"], "1 of that class, the first at"),
    ],
)
def test_what_is_meant_by_no_entry_is_said(
    tmp_path: Path, capsys: Any, option: list[str], said: str
) -> None:
    name, *value = option
    assert main(["fit", *written(tmp_path), f"--trainer.callbacks.{name}", *value]) == 1
    assert said in capsys.readouterr().err


def test_a_misspelt_argument_of_a_callback_is_suggested(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *written(tmp_path), "--trainer.callbacks.SampleText.promts", "[a]"])
    assert "did you mean 'prompts'" in capsys.readouterr().err


def test_of_two_of_a_class_one_is_named_by_its_place(tmp_path: Path, capsys: Any) -> None:
    config = written(tmp_path)
    contents = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    contents["trainer"]["callbacks"].append(SAMPLE)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(contents))
    option = ["--trainer.callbacks.SampleText.prompts", "[a]"]
    assert main(["fit", *config, *option]) == 1
    assert "2 of that class; say which one" in capsys.readouterr().err
    option = ["--trainer.callbacks.SampleText[1].prompts", "[a]"]
    callbacks = printed(["fit", *config, *option], capsys)["callbacks"]
    assert callbacks[0]["init_args"]["prompts"] == ["def "]
    assert callbacks[3]["init_args"]["prompts"] == ["a"]
