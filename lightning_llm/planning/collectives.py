"""Equal calls to other ranks, counted together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Collective:
    """Equal calls of one kind in one step.

    Attributes:
        operation: ``"all_gather"``, ``"reduce_scatter"`` or ``"all_reduce"``.
        over: ``"shards"`` (ranks that hold one copy), ``"replicas"``, ``"tensor"`` (ranks that
            share every layer), ``"context"`` (every sequence), ``"copy"`` (shards of all of these)
            or ``"all"``.
        ranks: That take part.
        calls: Per step.
        bytes: Of one rank over all calls: of the larger of what goes in and what comes out.
        overlaps: Whether the device computes meanwhile.
    """

    operation: str
    over: str
    ranks: int
    calls: int
    bytes: int
    overlaps: bool = True


def bytes_by_operation(collectives: list[Collective]) -> dict[str, int]:
    """Bytes of one rank in one step."""
    names = ("all_gather", "reduce_scatter", "all_reduce")
    return {name: sum(c.bytes for c in collectives if c.operation == name) for name in names}
