"""Puts the recipes into the package where its link to their folder is no link.

Everything else stands in pyproject.toml.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path(__file__).parent / "recipes"


class BuildWithRecipes(build_py):
    """Copy the recipes in clones whose git writes symbolic links as text files."""

    def run(self) -> None:
        """Build the package; an editable install finds the recipes beside it."""
        super().run()
        target = Path(self.build_lib) / "lightning_llm" / "recipes"
        if not self.editable_mode and RECIPES.is_dir() and not target.is_dir():
            shutil.copytree(RECIPES, target)


setup(cmdclass={"build_py": BuildWithRecipes})
