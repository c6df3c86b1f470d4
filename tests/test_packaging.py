"""What a user installs: version, console script, pins, wheel, and the README's commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lightning_llm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    """Return package -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_version_is_a_release_of_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", lightning_llm.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{lightning_llm.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    source = tool["setuptools"]["dynamic"]["version"]
    assert source == {"attr": "lightning_llm._version.__version__"}
    assert metadata.version("lightning-llm") == lightning_llm.__version__
    for other in ("pyproject.toml", "CITATION.cff", "mkdocs.yml", "docs/quickstart.md"):
        assert lightning_llm.__version__ not in (ROOT / other).read_text(encoding="utf-8"), other


@pytest.mark.parametrize("symlinks", [True, False])
def test_the_wheel_holds_the_package_and_the_recipes(tmp_path: Path, symlinks: bool) -> None:
    """Of a clone whose git writes symbolic links as text files (core.symlinks=false) as well."""
    pytest.importorskip("setuptools", minversion="77", reason="the build needs setuptools 77")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("lightning_llm", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=skip)
    if not symlinks:
        (tmp_path / "lightning_llm" / "recipes").unlink()
        (tmp_path / "lightning_llm" / "recipes").write_text("../recipes")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, check=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"lightning_llm-{lightning_llm.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_llm").rglob("*.py")}
    recipes = {
        f"lightning_llm/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert names == python | recipes | {"lightning_llm/py.typed"}


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(lightning_llm.__file__).parent / "py.typed").is_file()
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert "py.typed" in tool["setuptools"]["package-data"]["lightning_llm"]


def test_the_console_script_resolves() -> None:
    (script,) = entry_points(group="console_scripts", name="lightning-llm")
    assert callable(script.load())


@pytest.mark.parametrize("group", ["dependencies", *PROJECT["optional-dependencies"]])
def test_pinned_versions_satisfy_the_declared_ranges(group: str) -> None:
    declared = PROJECT.get(group) or PROJECT["optional-dependencies"][group]
    for text in declared:
        requirement = Requirement(text)
        pinned = pins().get(canonicalize_name(requirement.name))
        if pinned is not None:
            assert requirement.specifier.contains(pinned), f"{text} excludes the pin {pinned}"


def test_every_dependency_of_a_run_or_a_test_is_pinned() -> None:
    declared = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    names = {canonicalize_name(Requirement(text).name) for text in declared}
    assert names - {"lightning-llm"} <= set(pins())


def test_the_malicious_lightning_releases_are_excluded() -> None:
    (lightning,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "lightning")
    for version in ("2.6.2", "2.6.3"):
        assert not lightning.specifier.contains(version)


def readme_commands() -> list[str]:
    """Return the command lines of the README's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", README, flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.removeprefix("$ ").strip() for line in text.splitlines()]


def test_the_readme_names_the_test_command_and_the_pinned_install() -> None:
    commands = readme_commands()
    assert any("pip install" in line and "-c constraints.txt" in line for line in commands)
    tests = [line for line in commands if "pytest" in line]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert tests, "the README names no test command"
    assert tests[0].split("  #")[0] in ci, "the CI script runs another test command"


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_badges_say_what_the_package_declares(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    said = dict(re.findall(r"img\.shields\.io/badge/(\w+)-(.+?)-[0-9a-f]{6}\)", unquote(text)))
    minor = "Programming Language :: Python :: 3."
    versions = [f"3.{c.removeprefix(minor)}" for c in PROJECT["classifiers"] if minor in c]
    floors = {
        requirement.name: next(s.version for s in requirement.specifier if s.operator == ">=")
        for requirement in map(Requirement, PROJECT["dependencies"])
    }
    assert said == {
        "python": "_|_".join(versions),
        "torch": f"≥_{floors['torch']}",
        "lightning": f"≥_{floors['lightning']}",
        "license": PROJECT["license"].replace("-", "--"),
    }


def test_the_pictures_of_the_readme_exist() -> None:
    for file in re.findall(r"!\[[^]]*\]\((?!https:)([^)]+)\)", README):
        assert (ROOT / file).is_file(), file


def test_commands_of_the_readme_exist() -> None:
    from lightning_llm.cli import COMMANDS

    for line in readme_commands():
        words = shlex.split(line, comments=True)
        if not words or words[0] != "lightning-llm":
            continue
        assert words[1] in COMMANDS, line
        for flag, value in pairwise(words):
            if flag == "--config" and value.startswith("recipes/"):
                assert (ROOT / value).is_file(), f"{line}: no {value}"


def test_the_command_prints_its_version() -> None:
    command = [sys.executable, "-c", "from lightning_llm.cli import main; main(['--version'])"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"lightning-llm {lightning_llm.__version__}\n"
