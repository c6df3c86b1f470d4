"""The charts as PNG files, drawn by Pillow from the same layout as the page's."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_llm.errors import MissingPackageError
from lightning_llm.reporting.chart import HEIGHT, LEFT, RIGHT, WIDTH, Chart, lay_out
from lightning_llm.reporting.charts import COLOURS, charts_over_time, charts_over_work
from lightning_llm.reporting.fonts import Fonts
from lightning_llm.reporting.run import Run

_FINE = 4  # pixels drawn per unit of the layout; half as many are kept, which smooths the lines
_TITLE, _KEY, _NOTE = 26, 16, 14  # heights of the rows around the chart
_NOTE_LETTERS = 84  # of a line
_DASH, _GAP = 6.0, 3.0
_INK, _BACK, _SOFT = "#1f2328", "#ffffff", "#d0d7de"
_Place = tuple[float, float]


def check_pillow() -> None:
    """Find the library that PNGs are drawn with.

    Raises:
        ModuleNotFoundError: Pillow is not installed, or older than 10.1.
    """
    try:
        from PIL import ImageFont

        ImageFont.load_default(size=11)
    except (ImportError, TypeError) as error:
        raise MissingPackageError(
            "PNGs are drawn with Pillow 10.1 or newer: pip install 'lightning-llm[png]'"
        ) from error


def write_pngs(runs: Sequence[Run], directory: Path) -> list[Path]:
    """Write each chart of the page to a file of its own, such as ``loss_over_tokens.png``.

    A text is drawn with a font that has its letters; those that no font here has are named in one
    warning.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """
    check_pillow()
    directory.mkdir(parents=True, exist_ok=True)
    files, fonts = [], Fonts()
    for chart in [*charts_over_work(runs), *charts_over_time(runs)]:
        name = re.sub(r"[^a-z0-9]+", "_", chart.heading.lower()).strip("_")
        files.append(directory / f"{name}.png")
        _picture(chart, fonts).save(files[-1])
    fonts.warn()
    return files


def _picture(chart: Chart, fonts: Fonts) -> Any:
    from PIL import Image, ImageDraw

    keys = dict.fromkeys((line.run, line.colour) for line in chart.lines)
    note = textwrap.wrap(chart.note, _NOTE_LETTERS)
    top = _TITLE + _KEY * len(keys)
    bottom = top + HEIGHT + _NOTE * len(note) + 6
    image = Image.new("RGB", (WIDTH * _FINE, bottom * _FINE), _BACK)
    draw = ImageDraw.Draw(image)

    def write(x: float, y: float, text: str, anchor: str, size: int = 11) -> None:
        font = fonts.of(text, size * _FINE)
        draw.text((x * _FINE, y * _FINE), text, fill=_INK, font=font, anchor=anchor)

    write(LEFT, _TITLE - 8, chart.heading, "ls", size=15)
    for row, (run, colour) in enumerate(keys):
        high = _TITLE + _KEY * row
        box = (LEFT, high + 2, LEFT + 10, high + 12)
        draw.rectangle([side * _FINE for side in box], fill=COLOURS[colour])
        write(LEFT + 16, high + 11, run, "ls")
    layout = lay_out(chart)
    for y in layout.grid:
        ends = [(LEFT * _FINE, (top + y) * _FINE), ((WIDTH - RIGHT) * _FINE, (top + y) * _FINE)]
        draw.line(ends, fill=_SOFT, width=_FINE)
    for label in layout.labels:
        write(label.x, top + label.y, label.text, "rs" if label.ends else "ms")
    for line, places in zip(chart.lines, layout.curves):
        path = [(x * _FINE, (top + y) * _FINE) for x, y in places]
        _draw_curve(draw, path, COLOURS[line.colour], line.dashed)
    for row, text in enumerate(note):
        write(LEFT, top + HEIGHT + _NOTE * row + 10, text, "ls")
    return image.reduce(2)


def _draw_curve(draw: Any, path: list[_Place], colour: str, dashed: bool) -> None:
    width = round(1.6 * _FINE)
    if len(path) == 1:
        [(x, y)], radius = path, 3 * _FINE
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
        return
    for piece in _dashes(path) if dashed else [path]:
        draw.line(piece, fill=colour, width=width, joint="curve")


def _dashes(path: list[_Place]) -> Iterator[list[_Place]]:
    """Cut a path into dashes of equal length with equal gaps between them."""
    piece, left, is_dash = [path[0]], _DASH * _FINE, True
    for (x0, y0), (x1, y1) in pairwise(path):
        length, done = math.hypot(x1 - x0, y1 - y0), 0.0
        while length - done > left:
            done += left
            share = done / length
            point = (x0 + share * (x1 - x0), y0 + share * (y1 - y0))
            if is_dash:
                yield [*piece, point]
            is_dash = not is_dash
            piece, left = [point], (_DASH if is_dash else _GAP) * _FINE
        left -= length - done
        piece.append((x1, y1))
    if is_dash and len(piece) > 1:
        yield piece
