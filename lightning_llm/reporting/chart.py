"""Where the lines, ticks and labels of a chart lie, for whatever draws it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 12, 40  # margins around the lines
_MOST_POINTS = 600  # about one per pixel


class Line(NamedTuple):
    """One column of one run; ``colour`` is the number of the run's colour."""

    run: str
    column: str
    colour: int
    dashed: bool
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis.

    Attributes:
        title: What is drawn, such as ``Loss``.
        axis: What it is drawn over: ``tokens``, ``step`` or ``minutes``.
        lines: At least one, each with at least one point.
    """

    title: str
    axis: str
    lines: list[Line]

    @property
    def heading(self) -> str:
        """``Loss over tokens``."""
        return f"{self.title} over {self.axis}"

    @property
    def note(self) -> str:
        """The columns, and what a dashed line means if there is one."""
        columns = ", ".join(sorted({line.column for line in self.lines}))
        dashed = any(line.dashed for line in self.lines)
        return columns + ("; dashed: evaluation" if dashed else "")


class Label(NamedTuple):
    """A text whose baseline is at ``y``; it ends at ``x``, or has its middle there."""

    x: float
    y: float
    text: str
    ends: bool


class Layout(NamedTuple):
    """A chart in pixels of a picture of ``WIDTH`` by ``HEIGHT``, from the upper left corner.

    Attributes:
        grid: Heights of the horizontal lines.
        labels: Of both axes.
        curves: The places of each line's points.
    """

    grid: list[float]
    labels: list[Label]
    curves: list[list[tuple[float, float]]]


def lay_out(chart: Chart) -> Layout:
    """Place the parts of a chart."""
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    x0, x1 = min(xs), max(xs)  # a run fills the width, wherever the round numbers are
    x_ticks = [tick for tick in _ticks(x0, x1) if x0 <= tick <= x1]
    y_ticks = _ticks(min(ys), max(ys))
    y0, y1 = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / ((x1 - x0) or 1.0)
        up = (y - y0) / ((y1 - y0) or 1.0)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    grid = [place(x0, tick)[1] for tick in y_ticks]
    labels = [Label(LEFT - 6, y + 4, _number(tick), True) for tick, y in zip(y_ticks, grid)]
    labels += [Label(place(tick, y0)[0], HEIGHT - 22, _number(tick), False) for tick in x_ticks]
    labels.append(Label((LEFT + WIDTH) / 2, HEIGHT - 4, chart.axis, False))
    curves = [[place(x, y) for x, y in _thinned(line.points)] for line in chart.lines]
    return Layout(grid, labels, curves)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about ``_MOST_POINTS``: the ends, and the extremes of each stretch."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def _number(value: float) -> str:
    size = abs(value)
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.4g}{letter}"
    return f"{value:.4g}"
