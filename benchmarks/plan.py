"""What one call of the command measures: the contenders, their pace and what they are rated by."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.pacing import Pace
from benchmarks.race import Row, Task


@dataclass(frozen=True)
class Plan:
    """A race to run and to write down.

    Attributes:
        kind: Name of the subcommand.
        title: Headline of its table.
        unit: What ``rate`` counts per second.
        tasks: The contenders.
        pace: Steps and rounds.
        settings: What distinguishes this run from others of its kind; ``name_parts`` go into the
            file name.
        baselines: Label of a row -> label of the row it is compared with.
        columns: Columns of the table, see `benchmarks.render`.
        fresh: Measure the time to the first step, each round in a new process.
        finish: Adds to the rows what only all of them together tell.
    """

    kind: str
    title: str
    unit: str
    tasks: Sequence[Task]
    pace: Pace
    settings: dict[str, Any]
    baselines: dict[str, str]
    columns: tuple[str, ...] = ("rate", "ratio", "memory")
    fresh: bool = False
    finish: Callable[[list[Row]], None] = lambda rows: None


@dataclass
class Pacing:
    """Default pace of a measurement, which ``--warmup``, ``--rounds`` and ``--steps`` override."""

    warmup: int
    rounds: int
    steps: int
    settle: int = 1
    quick: dict[str, int] = field(default_factory=lambda: {"warmup": 1, "rounds": 2, "steps": 1})

    def resolve(self, args: Namespace) -> Pace:
        """Return the pace of this call."""
        chosen = {name: getattr(self, name) for name in ("warmup", "rounds", "steps", "settle")}
        if args.quick:
            chosen |= self.quick
        given = {name: getattr(args, name) for name in ("warmup", "rounds", "steps")}
        chosen |= {name: value for name, value in given.items() if value is not None}
        return Pace(**chosen)


def against(baseline: str, tasks: Sequence[Task]) -> dict[str, str]:
    """Compare every task with one."""
    return {task.label: baseline for task in tasks}
