"""A chart as SVG text; the page's style sheet gives its classes their looks."""

from __future__ import annotations

from html import escape

from lightning_llm.reporting.chart import HEIGHT, LEFT, RIGHT, WIDTH, Chart, lay_out


def svg(chart: Chart) -> str:
    """Draw a chart: class ``c0`` .. ``c7`` sets a line's colour, ``dashed`` its dashes."""
    layout = lay_out(chart)
    heading = escape(chart.heading)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{heading}">']
    for y in layout.grid:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    for label in layout.labels:
        side = "y" if label.ends else "x"
        text = escape(label.text)
        parts.append(f'<text class="{side}" x="{label.x:.1f}" y="{label.y:.1f}">{text}</text>')
    for line, places in zip(chart.lines, layout.curves):
        look = f"line c{line.colour}" + (" dashed" if line.dashed else "")
        hint = f"<title>{escape(f'{line.run}: {line.column}')}</title>"
        if len(places) == 1:
            (x, y) = places[0]
            parts.append(f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="3">{hint}</circle>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="{look}" points="{path}">{hint}</polyline>')
    return "\n".join([*parts, "</svg>"])
