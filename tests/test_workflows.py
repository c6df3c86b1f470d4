"""What happens on GitHub: pinned actions, least rights, a release without secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    return {("on" if key is True else key): value for key, value in content.items()}


def commands(workflow: dict[str, Any]) -> list[str]:
    """Return what the steps of all jobs run, line by line."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [line.strip() for step in steps for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path: Path) -> None:
    used = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_read_unless_they_say_otherwise_and_end(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())
    text = path.read_text(encoding="utf-8")
    assert "secrets." not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


def test_one_commit_has_one_version_everywhere() -> None:
    pins = {
        tuple(re.split(r"@| # ", action))
        for path in WORKFLOWS
        for action in re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    }
    assert len(pins) == len({name for name, *_ in pins})


def test_ci_lints_tests_builds_the_documentation_and_the_package() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "ci.yml")
    assert set(workflow["on"]) == {"push", "pull_request"}
    run = commands(workflow)
    expected = ["ruff check .", "ruff format --check .", "mypy", "python -m pytest"]
    expected += ["mkdocs build --strict", "python -m build", "twine check --strict dist/*"]
    assert [command for command in expected if command not in run] == []


def test_a_release_is_a_tag_checked_and_published_without_a_token() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    assert workflow["on"] == {"push": {"tags": ["v*.*.*"]}}
    run = commands(workflow)
    assert "python -m build" in run
    assert "twine check --strict dist/*" in run
    assert any("CHANGELOG.md" in line for line in run)
    assert any(line.startswith('test "$TAG" = "v$version"') for line in run)
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["environment"] == "release"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in publish["steps"][-1]
    writes = [name for name, job in workflow["jobs"].items() if "permissions" in job]
    assert writes == ["publish"]


def test_dependabot_watches_actions_and_pins_and_skips_the_malicious_releases() -> None:
    content = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))
    updates = {update["package-ecosystem"]: update for update in content["updates"]}
    assert set(updates) == {"github-actions", "pip"}
    [ignored] = updates["pip"]["ignore"]
    assert ignored == {"dependency-name": "lightning", "versions": ["2.6.2", "2.6.3"]}


def test_a_vulnerability_has_a_private_way_and_a_citation_its_facts() -> None:
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "Report a vulnerability" in policy
    assert "not in a public issue" in policy
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == "lightning_llm"
    assert citation["license"] == "Apache-2.0"
    assert citation["type"] == "software"
    assert citation["message"]
    assert [author["name"] for author in citation["authors"]] == ["The lightning_llm developers"]
