"""What the text of a recipe may be, checked before anything is built from it.

YAML keeps the last of two equal keys, silently, and lets a few hundred bytes of aliases stand for
billions of values. Both are found here in one pass over the parser's events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from lightning_llm.errors import LightningLLMError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 100
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RecipeTextError(LightningLLMError, yaml.YAMLError):
    """The text of a recipe is refused; the message names the line."""


@dataclass
class _Open:
    """A mapping or sequence that has not ended."""

    anchor: str | None
    is_mapping: bool
    nodes: int = 1
    expects_key: bool = True
    keys: dict[str, int] = field(default_factory=dict)  # key -> line


def install_guard() -> None:
    """Have jsonargparse check every text before it reads it."""
    from jsonargparse import get_loader, set_loader
    from jsonargparse._loaders_dumpers import set_omegaconf_loader

    mode = "omegaconf+"
    set_omegaconf_loader(mode)
    load = get_loader(mode)
    if getattr(load, "checks_text", False):
        return

    def guarded(value: str, path: str = "") -> Any:
        try:
            check_recipe_text(value)
        except RecipeTextError as error:
            if not path:
                raise
            raise RecipeTextError(f"{path}: {error}") from error
        return load(value)

    guarded.checks_text = True  # type: ignore[attr-defined]
    set_loader(mode, guarded, (yaml.YAMLError,))


def check_recipe_text(text: str) -> None:
    """Refuse a text that is too long, repeats a key, or grows out of bounds when read.

    Raises:
        RecipeTextError: It does; the message names the line.
        yaml.YAMLError: It is not YAML.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise RecipeTextError(f"{size:,} bytes; a recipe has at most {MAX_BYTES:,}")
    stack = [_Open(None, is_mapping=False)]
    sizes: dict[str, int] = {}  # anchor -> nodes it stands for
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise RecipeTextError(f"line {line}: *{event.anchor} refers to what contains it")
            _add(stack[-1], sizes[event.anchor], line)
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = 1
            _check_key(stack[-1], event.value, line)
            _add(stack[-1], 1, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(stack) > MAX_DEPTH:
                raise RecipeTextError(f"line {line}: nested more than {MAX_DEPTH} levels deep")
            sizes.pop(event.anchor, None)
            stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = stack.pop()
            if closed.anchor:
                sizes[closed.anchor] = closed.nodes
            _add(stack[-1], closed.nodes, line)


def _check_key(parent: _Open, key: str, line: int) -> None:
    if not (parent.is_mapping and parent.expects_key):
        return
    if key in parent.keys:
        raise RecipeTextError(
            f"line {line}: the key {key!r} was given on line {parent.keys[key]} already; only one "
            "of them would count, so delete the other"
        )
    parent.keys[key] = line


def _add(parent: _Open, nodes: int, line: int) -> None:
    """Count a finished child."""
    parent.nodes += nodes
    parent.expects_key = not parent.expects_key
    if parent.nodes > MAX_NODES:
        raise RecipeTextError(
            f"line {line}: with its aliases written out the text has more than {MAX_NODES:,} values"
        )
