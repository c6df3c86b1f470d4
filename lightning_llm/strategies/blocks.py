"""Finds the repeated blocks of any model: what is compiled, checkpointed and sharded one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from lightning_llm.errors import InvalidTypeError, InvalidValueError

# A list of blocks next to the largest one counts (encoder beside decoder) from this share of it.
_COMPARABLE = 0.1


def find_blocks(
    module: nn.Module, block_class: str | Sequence[str] | None = None
) -> list[nn.Module]:
    """The repeated blocks of a model, in registration order.

    Without ``block_class``: the children of the ``nn.ModuleList``, ``nn.ModuleDict`` or
    ``nn.Sequential`` that holds the most parameters, among those with two or more children, all
    of one class, which themselves have parts. Lists of comparable size beside it are taken too,
    so that an encoder-decoder gives both halves; lists inside a block (experts) are part of it.
    Where there is none, the largest with a single child is taken: a model of one layer.

    Args:
        module: Any module, Hugging Face models included.
        block_class: Class name of the blocks, or several; subclasses count.

    Returns:
        Distinct modules, none inside another.

    Raises:
        TypeError: ``block_class`` is a class, not its name.
        ValueError: There are none; the classes that could be named are listed.
    """
    if block_class is not None:
        if isinstance(block_class, type):
            raise InvalidTypeError(
                f"block_class={block_class!r} is a class; give its name, {block_class.__name__!r}"
            )
        names = {block_class} if isinstance(block_class, str) else set(block_class)
        blocks = _of_class(module, names)
        if not blocks:
            raise InvalidValueError(
                f"block_class={sorted(names)} names no part of {type(module).__name__}; "
                f"{_repeated_classes(module)}"
            )
        return blocks
    found = _block_lists(module, 2) or _block_lists(module, 1)
    if not found:
        raise InvalidValueError(
            f"{type(module).__name__} has no list of blocks: no nn.ModuleList, nn.ModuleDict or "
            f"nn.Sequential whose children are of one class and have parts; name their class "
            f"with block_class=...; {_repeated_classes(module)}"
        )
    lists = {tuple(children): _size(children) for children in found}
    smallest = _COMPARABLE * max(lists.values())
    return [block for children, size in lists.items() if size >= smallest for block in children]


def _of_class(module: nn.Module, names: set[str]) -> list[nn.Module]:
    """Outermost modules with one of the names among their classes."""
    if any(base.__name__ in names for base in type(module).__mro__):
        return [module]
    found = [block for child in module.children() for block in _of_class(child, names)]
    return list(dict.fromkeys(found))


def _block_lists(module: nn.Module, shortest: int) -> list[list[nn.Module]]:
    """Outermost lists of at least so many blocks."""
    children = list(module.children())  # a module registered twice comes once
    is_list = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    if (
        is_list
        and len(children) >= shortest
        and len({type(child) for child in children}) == 1
        and any(True for _ in children[0].children())
        and _size(children) > 0
    ):
        return [children]
    return [found for child in children for found in _block_lists(child, shortest)]


def _size(blocks: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for parameter in nn.ModuleList(blocks).parameters())


def _repeated_classes(module: nn.Module) -> str:
    """What a user could have named, as the end of an error message."""
    counts = Counter(type(part).__name__ for part in module.modules() if any(part.children()))
    repeated = [f"{name} ({count})" for name, count in counts.items() if count > 1]
    return f"classes that occur more than once: {', '.join(repeated) or 'none'}"
