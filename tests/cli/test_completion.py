"""Completion in a shell: the script is run, and asked as the shell asks it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_llm.cli.training  # noqa: F401  # its log handler keeps the stderr it finds
from lightning_llm.cli import main

ASK = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_lightning_llm
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lightning_llm.cli.completion import completion_script

    path = tmp_path_factory.mktemp("completion") / "completion.sh"
    path.write_text(completion_script("bash"))
    return path


def ask(script: Path, *words: str) -> list[str]:
    command = ["bash", "-c", ASK, "bash", str(script), "lightning-llm", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["f"], ["fit"]),
        (["fit", "--trainer.max_s"], ["--trainer.max_steps"]),
        (["fit", "--model.init_args.config.n_l"], ["--model.init_args.config.n_layers"]),
        (
            ["prepare", "--data.init_args.tokenizer.v"],
            ["--data.init_args.tokenizer.vocab_size"],
        ),
        (["fit", "--resume", ""], ["auto", "must", "never"]),
        (["fit", "--trainer.precision", "bf16-"], ["bf16-true", "bf16-mixed"]),
        (["fit", "--trainer.strategy", "fsdp2"], ["fsdp2"]),
        (["validate", "--res"], []),
        (["plan", "--form"], ["--format"]),
        (["generate", "--ch"], ["--checkpoint"]),
        (["report", "--run"], []),
        (["recipes", "quick"], ["quickstart"]),
        (["completion", ""], ["bash", "zsh"]),
        (["fit", "--config", ""], []),  # the shell completes names of files
    ],
)
def test_bash_completes(script: Path, words: list[str], expected: list[str]) -> None:
    assert ask(script, *words) == expected


def test_zsh_takes_the_same_script(capsys: Any, script: Path) -> None:
    assert main(["completion", "zsh"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "autoload -U +X compinit && compinit",
        "autoload -U +X bashcompinit && bashcompinit",
    ]
    assert lines[3:] == script.read_text().splitlines()[1:]


def test_help_starts_without_heavy_libraries() -> None:
    code = (
        "import sys; from lightning_llm.cli import main; main(['--help']); main(['recipes']); "
        "print({'torch', 'numpy', 'lightning', 'yaml', 'jsonargparse'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: lightning-llm COMMAND")
    assert output.endswith("set()\n")


@pytest.mark.parametrize("command", ["generate", "export", "report", "recipes", "completion"])
def test_help_of_a_command_without_a_recipe_starts_without_torch(command: str) -> None:
    code = (
        "import sys\nfrom lightning_llm.cli import main\n"
        "try: main([sys.argv[1], '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'numpy', 'lightning', 'transformers'} & set(sys.modules))"
    )
    started = [sys.executable, "-c", code, command]
    output = subprocess.run(started, capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: lightning-llm")
    assert output.endswith("set()\n")


def test_another_shell_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "bash" in capsys.readouterr().err
