"""Every number of a page is the log's: read back from the page by other means than it was drawn."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_llm.reporting import Run, read_run, read_runs, render_report

# Title of a chart -> the columns it is made of.
CHARTS = {
    "Loss": ["train_loss", "val_loss"],
    "Perplexity": ["val_perplexity"],
    "Bits per byte": ["val_bits_per_byte"],
    "BLEU": ["val_bleu"],
    "chrF": ["val_chrf"],
    "Exact match": ["val_exact_match"],
    "F1": ["val_f1"],
    "Valid syntax (%)": ["val_syntax_validity"],
    "Learning rate": ["lr-AdamW"],
    "Gradient norm": ["grad_norm"],
    "Tokens per second": ["tokens_per_second"],
    "Model FLOPs utilisation": ["mfu", "mfu_causal"],
    "Memory (GiB)": ["peak_memory_gib"],
}
COLUMNS = [column for columns in CHARTS.values() for column in columns]
TEXTS = {
    "config.yaml": "seed_everything: 41\n",
    "hparams.yaml": "dim: 4097\n",
    "environment.json": json.dumps({"devices": "2 x NVIDIA H100", "torch": "2.13.0"}),
}


class Page(HTMLParser):
    """Collects the numbers, the charts and the plain text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[float]] = defaultdict(list)
        self.headings: list[str] = []
        self.text = ""
        self._tag, self._row = "", ""
        self.feed(page)
        self.charts = {
            (svg := ET.fromstring(found[0])).attrib["aria-label"]: svg
            for found in re.finditer(r"<svg.*?</svg>", page, re.DOTALL)
        }

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag == "data":
            self.rows[self._row].append(float(dict(attrs)["value"] or "nan"))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._tag == "th":
            self._row = data
        if self._tag == "h2":
            self.headings.append(data)
        self._tag = ""


def write_log(directory: Path, without: tuple[str, ...] = (), seed: int = 0) -> Path:
    draw = random.Random(seed)
    columns = [column for column in COLUMNS if column not in without]
    clocks = [] if "clocks" in without else ["tokens_seen", "step_seconds"]
    directory.mkdir(parents=True)
    with (directory / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *clocks, *columns])
        writer.writeheader()
        for step in range(9, 400, 10):
            row: dict[str, float] = {"step": step}
            row |= (
                {"tokens_seen": 512 * (step + 1), "step_seconds": 0.5} if len(clocks) == 2 else {}
            )
            row |= {name: draw.uniform(0, 9) for name in columns if not name.startswith("val")}
            writer.writerow(row)
            if step % 100 == 99:
                values = {name: draw.uniform(0, 90) for name in columns if name.startswith("val")}
                writer.writerow({"step": step, **values})
    for name, text in TEXTS.items():
        (directory / name).write_text(text)
    return directory


def last_values(directory: Path) -> dict[str, float]:
    with (directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: float(value) for row in rows for name, value in row.items() if value}


def last_point(chart: ET.Element, column: str) -> tuple[float, float]:
    """What the end of a line means on the axes, by the labels next to it."""

    def scale(name: str) -> list[tuple[float, float]]:
        along = "y" if name == "y" else "x"
        labels = [text for text in chart.iter("text") if text.get("class") == name]
        known = [t for t in labels if re.fullmatch(r"[-\d.e]+[kMBT]?", t.text or "")]
        units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
        places = []
        for label in known:
            text = label.text or ""
            number = float(text.rstrip("kMBT")) * units.get(text[-1], 1.0)
            places.append((float(label.attrib[along]) - (4 if name == "y" else 0), number))
        return [places[0], places[-1]]

    (line,) = [
        line for line in chart.iter("polyline") if (line[0].text or "").endswith(f": {column}")
    ]
    x, y = map(float, line.attrib["points"].split()[-1].split(","))
    found = []
    for place, ((p0, v0), (p1, v1)) in ((x, scale("x")), (y, scale("y"))):
        found.append(v0 + (place - p0) * (v1 - v0) / (p1 - p0))
    return found[0], found[1]


def test_the_last_values_are_those_of_the_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "run")
    page = Page(render_report([read_run(log)]))
    expected = last_values(log)
    assert {name: page.rows[name] for name in COLUMNS} == {n: [expected[n]] for n in COLUMNS}
    assert page.rows["tokens_seen"] == [400 * 512]


@pytest.mark.parametrize(("axis", "end"), [("tokens", 400 * 512), ("minutes", 400 * 0.5 / 60)])
def test_the_lines_end_where_the_log_does(tmp_path: Path, axis: str, end: float) -> None:
    log = write_log(tmp_path / "run")
    page = Page(render_report([read_run(log)]))
    expected = last_values(log)
    for title, columns in CHARTS.items():
        for column in columns:
            x, y = last_point(page.charts[f"{title} over {axis}"], column)
            assert x == pytest.approx(end, rel=0.01)
            assert y == pytest.approx(expected[column], abs=0.5 if column[:3] == "val" else 0.05)


def test_a_chart_per_column_and_axis_in_the_same_order(tmp_path: Path) -> None:
    page = Page(render_report([read_run(write_log(tmp_path / "run"))]))
    over = [[f"{title} over {axis}" for title in CHARTS] for axis in ("tokens", "minutes")]
    assert [h for h in page.headings if " over " in h] == over[0] + over[1]
    assert list(page.charts) == over[0] + over[1]


@pytest.mark.parametrize("title", CHARTS)
def test_what_was_not_logged_has_no_chart(tmp_path: Path, title: str) -> None:
    log = write_log(tmp_path / "run", without=tuple(CHARTS[title]))
    page = Page(render_report([read_run(log)]))
    assert {key.rpartition(" over ")[0] for key in page.charts} == set(CHARTS) - {title}
    assert not set(CHARTS[title]) & set(page.rows)


def test_without_counted_tokens_the_axis_is_steps(tmp_path: Path) -> None:
    log = write_log(tmp_path / "run", without=("clocks",))
    page = Page(render_report([read_run(log)]))
    assert list(page.charts) == [f"{title} over step" for title in CHARTS]
    assert last_point(page.charts["Loss over step"], "train_loss")[0] == pytest.approx(
        399, rel=0.01
    )
    assert "over minutes" not in page.text


def test_a_log_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step\n")
    page = Page(render_report([read_run(tmp_path)]))
    assert "No metrics were logged." in page.text
    assert not page.charts
    assert not page.rows


def test_recipe_hardware_and_versions_are_shown(tmp_path: Path) -> None:
    text = Page(render_report([read_run(write_log(tmp_path / "run"))])).text
    for expected in ("seed_everything: 41", "dim: 4097", "2 x NVIDIA H100", '"torch": "2.13.0"'):
        assert expected in text


def test_compared_runs_stand_beside_each_other(tmp_path: Path) -> None:
    logs = [
        write_log(tmp_path / "a"),
        write_log(tmp_path / "b", seed=1),
        write_log(tmp_path / "c", without=("val_bleu",), seed=2),
    ]
    page = Page(render_report(read_runs(logs)))
    expected = [last_values(log) for log in logs]
    for column in COLUMNS:
        assert page.rows[column] == [last[column] for last in expected if column in last]
    assert len(page.rows["val_bleu"]) == 2
    loss = page.charts["Loss over tokens"]
    colours = [line.attrib["class"] for line in loss.iter("polyline")]
    assert colours == [f"line c{run}{dashes}" for run in range(3) for dashes in ("", " dashed")]
    (key, *_) = re.findall(r"<ul class='runs'>.*?</ul>", render_report(read_runs(logs)))
    assert [key.count(f'"key c{i}"') for i in range(4)] == [1, 1, 1, 0]


def test_one_run_without_a_clock_takes_the_axis_from_all(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / "a"), write_log(tmp_path / "b", ("clocks",))]
    page = Page(render_report(read_runs(logs)))
    assert {key.rpartition(" over ")[2] for key in page.charts} == {"step"}


def test_long_lines_keep_their_ends_and_extremes(tmp_path: Path) -> None:
    rows = [f"{s},{9.0 if s == 4321 else 1 + math.exp(-s / 3000)!r}" for s in range(20_001)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train_loss", *rows]) + "\n")
    page = Page(render_report([read_run(tmp_path)]))
    chart = page.charts["Loss over step"]
    (line,) = chart.iter("polyline")
    places = line.attrib["points"].split()
    assert 300 < len(places) < 700
    heights = [float(place.split(",")[1]) for place in places]
    assert min(heights) < min(heights[:1] + heights[-1:]) - 100  # the one spike
    assert last_point(chart, "train_loss") == pytest.approx(
        (20_000, 1 + math.exp(-20 / 3)), abs=0.1
    )


def test_a_row_after_the_last_count_of_tokens_goes_on_at_the_same_rate() -> None:
    tokens = [(1.0, 100.0), (2.0, 200.0)]
    run = Run("a", {"tokens_seen": tokens, "lr": [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]})
    assert run.over_tokens("lr") == [(0.0, 1.0), (100.0, 2.0), (200.0, 3.0), (300.0, 4.0)]


@pytest.mark.parametrize("count", [0, 512])
def test_tokens_that_stand_still_are_no_axis(tmp_path: Path, count: int) -> None:
    """A count of 0 in every row, or of one batch, would put all points above each other."""
    rows = "".join(f"{step},{count},{3.0 - step}\n" for step in range(3))
    (tmp_path / "metrics.csv").write_text(f"step,tokens_seen,train_loss\n{rows}")
    run = read_run(tmp_path)
    assert run.over_tokens("train_loss") == []
    assert "Loss over step" in Page(render_report([run])).headings
