"""``lightning-llm completion``: a script that completes commands, keys and choices in a shell.

The script holds every word, so that a press of the tab key starts no Python.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from lightning_llm.cli.recipe_keys import recipe_keys
from lightning_llm.cli.shipped_recipes import shipped_recipes

_SHELLS = ("bash", "zsh")
_SCRIPT = """\
# Completion of lightning-llm; made by `lightning-llm completion {shell}`.
{start}_lightning_llm() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" choices=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    choices={commands}
  else
    case "$previous" in
{values}
    esac
    if [ -z "$choices" ]; then
      case "${{COMP_WORDS[1]}} $current" in
{options}
      esac
    fi
  fi
  # Without choices, -o default completes the names of files.
  if [ -n "$choices" ]; then COMPREPLY=($(compgen -W "$choices" -- "$current")); fi
}}
complete -o default -F _lightning_llm lightning-llm
"""
_ZSH_START = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def run_completion(arguments: Sequence[str]) -> int:
    """Write the script for a shell to standard output."""
    parser = argparse.ArgumentParser(
        prog="lightning-llm completion",
        description='Write a completion script: eval "$(lightning-llm completion bash)"',
    )
    parser.add_argument("shell", choices=_SHELLS)
    sys.stdout.write(completion_script(parser.parse_args(list(arguments)).shell))
    return 0


def completion_script(shell: str) -> str:
    """Return the script for ``bash`` or ``zsh``."""
    from lightning_llm.cli import COMMANDS, RECIPE_COMMANDS

    options = []
    values = {"recipes": list(shipped_recipes()), "completion": list(_SHELLS)}
    for command, parser in _parsers():
        flags = {flag for action in parser._actions for flag in action.option_strings}
        if command in RECIPE_COMMANDS:
            flags |= {f"--{key}" for key in recipe_keys(parser)}
        options.append(f"      {command}\\ -*) choices={_quoted(sorted(flags))} ;;")
        for action in parser._actions:
            values |= {flag: words for flag in action.option_strings if (words := _choices(action))}
    cases = [f"      {flag}) choices={_quoted(words)} ;;" for flag, words in values.items()]
    return _SCRIPT.format(
        shell=shell,
        start=_ZSH_START if shell == "zsh" else "",
        commands=_quoted(COMMANDS),
        values="\n".join(cases),
        options="\n".join(options),
    )


def _parsers() -> Iterator[tuple[str, Any]]:
    """Yield each command with its parser."""
    from lightning_llm.cli import RECIPE_COMMANDS
    from lightning_llm.cli.export import export_parser
    from lightning_llm.cli.generate import generate_parser
    from lightning_llm.cli.report import report_parser
    from lightning_llm.cli.training import recipe_parser

    for command in RECIPE_COMMANDS:
        yield command, recipe_parser(command)
    yield "generate", generate_parser()
    yield "export", export_parser()
    yield "report", report_parser()


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _choices(action: Any) -> list[str]:
    """Return the values of an option that takes one of a few."""
    registered = _registered().get(action.dest)
    if registered is not None:
        return registered
    if action.choices:
        return [str(choice) for choice in action.choices]
    kind = getattr(action, "_typehint", None)
    found: list[str] = []
    for one in get_args(kind) if get_origin(kind) not in (None, Literal) else [kind]:
        if get_origin(one) is Literal:
            found += [str(value) for value in get_args(one)]
        elif one is bool:
            found += ["true", "false"]
    return found


def _registered() -> Mapping[str, list[str]]:
    """Return names that Lightning keeps in registries."""
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    return {
        "trainer.accelerator": ["auto", *AcceleratorRegistry.available_accelerators()],
        "trainer.strategy": ["auto", *StrategyRegistry.available_strategies()],
    }
