"""A bar chart as SVG, written by hand: readable on light and dark pages, no library."""

from __future__ import annotations

from html import escape
from typing import Any

_BAR, _GAP, _LEFT, _WIDTH, _RIGHT, _TOP = 20, 8, 210, 420, 110, 44
_OURS, _OTHERS, _TEXT = "#7e57c2", "#9e9e9e", "#808080"


def bar_chart(result: dict[str, Any]) -> str:
    """Horizontal bars: rate, or seconds where the table has seconds; ours coloured."""
    rows = [row for row in result["rows"] if "median_seconds" in row]
    shows_time = not {"rate"} & set(result["columns"])
    scale, unit = 1.0, result["unit"]
    if shows_time:
        in_ms = "milliseconds" in result["columns"]
        scale, unit = (1e3, "ms, less is better") if in_ms else (1.0, "seconds, less is better")
    values = [(row["median_seconds"] if shows_time else row["rate"]) * scale for row in rows]
    longest = max(values, default=1.0)
    height = _TOP + len(rows) * (_BAR + _GAP) + _GAP
    width = _LEFT + _WIDTH + _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" font-family="sans-serif" font-size="13" fill="{_TEXT}">',
        f"<title>{escape(result['title'])}</title>",
        f'<text x="{_LEFT}" y="26" font-weight="bold">{escape(unit)}</text>',
    ]
    for place, (row, value) in enumerate(zip(rows, values)):
        y = _TOP + place * (_BAR + _GAP)
        length = max(1.0, _WIDTH * value / longest)
        ours = row["label"].startswith(("ours", "+", "muon"))
        middle = y + _BAR / 2 + 5
        parts += [
            f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(row["label"])}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2" '
            f'fill="{_OURS if ours else _OTHERS}"/>',
            f'<text x="{_LEFT + length + 6:.1f}" y="{middle}">{_number(value)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
