"""Recipes of an installed package: listed, written out, and used without a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lightning_llm.cli.training  # noqa: F401  # its log handler keeps the stderr it finds
from lightning_llm.cli import main
from lightning_llm.cli.shipped_recipes import recipes_folder, shipped_recipes, use_shipped

ROOT = Path(__file__).parents[2]


def test_recipes_of_a_clone_without_symbolic_links(tmp_path: Path) -> None:
    package = tmp_path / "lightning_llm"
    package.mkdir()
    (package / "recipes").write_text("../recipes")  # what git writes with core.symlinks=false
    (tmp_path / "recipes").mkdir()
    assert recipes_folder(package) == tmp_path / "recipes"
    (package / "recipes").unlink()
    assert recipes_folder(package) == tmp_path / "recipes"
    (package / "recipes").mkdir()
    assert recipes_folder(package) == package / "recipes"


def test_all_recipes_are_shipped_and_listed(capsys: Any) -> None:
    here = {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {f"{path.with_suffix('').as_posix()}" for path in here} == set(shipped_recipes())
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(here)
    assert all(len(line.split(maxsplit=1)[1]) > 15 for line in lines)


@pytest.mark.parametrize("name", ["quickstart", "recipes/quickstart.yaml"])
def test_a_recipe_is_written_out(capsys: Any, name: str) -> None:
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes" / "quickstart.yaml").read_text()


def test_an_unknown_recipe_is_named(capsys: Any) -> None:
    assert main(["recipes", "quickstrat"]) == 1
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


def test_a_shipped_recipe_is_found_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = str(shipped_recipes()["quickstart"])
    for flags in (["--config", "recipes/quickstart.yaml"], ["-c", "recipes/quickstart.yaml"]):
        assert use_shipped([*flags, "--trainer.max_steps", "1"])[:2] == [flags[0], shipped]
    assert use_shipped(["--config=recipes/quickstart.yaml"]) == [f"--config={shipped}"]
    assert "recipes/quickstart.yaml: not in this folder" in capsys.readouterr().err
    kept = ["--config", "recipes/nowhere.yaml", "--ckpt_path", "recipes/quickstart.yaml", "-c"]
    assert use_shipped(kept) == kept

    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.yaml").write_text("")
    own = ["--config", "recipes/quickstart.yaml"]
    assert use_shipped(own) == own


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("quickstart.yaml", "did you mean 'recipes/quickstart.yaml'?"),
        ("recipes/gpt2_124.yaml", "did you mean 'recipes/pretrain/gpt2_124m.yaml'?"),
        ("lora", "did you mean 'recipes/finetune/lora.yaml'?"),
        ("mine.yaml", "mine.yaml'\n"),
        (None, "give a recipe, such as --config recipes/quickstart.yaml"),
    ],
)
def test_a_recipe_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, given: str | None, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *([] if given is None else ["--config", given])])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") <= 2


def test_an_overlay_of_the_package_works_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", "recipes/quickstart.yaml", "--config", "recipes/debug.yaml"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, "--print_config"])
    assert stopped.value.code == 0
    assert "max_steps: 2\n" in capsys.readouterr().out
