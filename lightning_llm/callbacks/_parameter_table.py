"""Where the parameters of a model are, a line per part."""

from __future__ import annotations

from torch import nn

from lightning_llm.callbacks._console import short_number


def parameter_rows(module: nn.Module) -> dict[str, int]:
    """Part of ``module`` -> its parameters; they sum to those of ``module.parameters()``.

    Members of a ``ModuleList`` are added up and split by their children, as in
    ``blocks x 12: mlp``. Shared parameters count once, at their first place.
    """
    lists = {name: m for name, m in module.named_modules() if isinstance(m, nn.ModuleList)}
    rows: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        part = _part(name, lists)
        rows[part] = rows.get(part, 0) + parameter.numel()
    return rows


def parameter_lines(module: nn.Module) -> list[str]:
    """The rows as aligned text, each with its share of all parameters."""
    rows = parameter_rows(module)
    total = sum(rows.values()) or 1
    width = max((len(part) for part in rows), default=0)
    return [
        f"{part:<{width}}  {short_number(count):>6}  {count / total:6.1%}"
        for part, count in rows.items()
    ]


def _part(name: str, lists: dict[str, nn.ModuleList]) -> str:
    path = name.split(".")
    for end in range(1, len(path)):
        prefix = ".".join(path[:end])
        if prefix in lists:
            child = path[end + 1 : end + 2]
            return f"{prefix} x {len(lists[prefix])}: {child[0]}"
    return ".".join(path[:-1]) or name
