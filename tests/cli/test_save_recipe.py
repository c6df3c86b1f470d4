"""The recipe of a run is kept, and replaces no file of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_llm.cli.save_recipe import SaveRecipe


class Parser:
    """Writes what Lightning's parser would: the configuration as text."""

    def save(self, config: str, path: str, **options: Any) -> None:
        Path(path).write_text(config)


class Run:
    """What the callback reads of a trainer without a logger's folder."""

    log_dir, is_global_zero = None, True

    def __init__(self, folder: Path) -> None:
        self.default_root_dir = folder


def save(folder: Path, config: str) -> None:
    callback: Any = SaveRecipe(Parser(), config, overwrite=True)  # type: ignore[arg-type]
    callback.setup(Run(folder), None, "fit")


def test_a_file_of_the_user_stays(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    with pytest.warns(UserWarning, match=r"config\.yaml is not a recipe that a run has saved"):
        save(tmp_path, "a: 1\n")
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"
    assert (tmp_path / "run_config.yaml").read_text().endswith("\na: 1\n")


def test_the_recipe_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, "a: 1\n")
    save(tmp_path, "b: 2\n")
    first, rest = (tmp_path / "config.yaml").read_text().split("\n", 1)
    assert first.startswith("#")
    assert rest == "b: 2\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.filterwarnings("ignore:.*is not a recipe that a run has saved")
def test_links_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "run_config.yaml"):
        (run / name).symlink_to(precious)
    save(run, "a: 1\n")
    assert precious.read_text() == "x"
    assert (run / "run_config.yaml").read_text().endswith("a: 1\n")
