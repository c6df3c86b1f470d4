"""A line chart as SVG text."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 12, 40
_MOST_POINTS = 600  # about one per pixel


class Line(NamedTuple):
    """One line of a chart: its class ``c0`` .. ``c7`` sets its colour."""

    label: str
    colour: int
    dashed: bool
    points: list[tuple[float, float]]


def line_chart(title: str, x_label: str, lines: list[Line]) -> str:
    """An ``<svg>`` of ``lines``, of which at least one has points."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x0, x1 = min(xs), max(xs)  # a run fills the width, wherever the round numbers are
    x_ticks = [tick for tick in _ticks(x0, x1) if x0 <= tick <= x1]
    y_ticks = _ticks(min(ys), max(ys))
    y0, y1 = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / ((x1 - x0) or 1.0)
        up = (y - y0) / ((y1 - y0) or 1.0)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        _, y = place(x0, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{_number(tick)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y0)
        parts.append(f'<text class="x" x="{x:.1f}" y="{_HEIGHT - 22}">{_number(tick)}</text>')
    parts.append(
        f'<text class="x" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 4}">{escape(x_label)}</text>'
    )
    for line in lines:
        places = [place(x, y) for x, y in _thinned(line.points)]
        look = f"line c{line.colour}" + (" dashed" if line.dashed else "")
        hint = f"<title>{escape(line.label)}</title>"
        if len(places) == 1:
            (x, y) = places[0]
            parts.append(f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="3">{hint}</circle>')
        elif places:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="{look}" points="{path}">{hint}</polyline>')
    return "\n".join([*parts, "</svg>"])


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about ``_MOST_POINTS``, with the lowest and the highest of each stretch."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


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
