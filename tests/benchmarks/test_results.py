"""Medians and ratios, result files, tables and charts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.charts import bar_chart
from benchmarks.machine import describe_machine, worker_environment
from benchmarks.pages import fill, summary_table
from benchmarks.render import text_table, write_page
from benchmarks.results import read_results, summarize, write_result


def row(label: str, seconds: list[float], units: float = 100.0, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "status": "ok",
        "units_per_step": units,
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": seconds,
        "peak_memory_bytes": [1 << 20] * len(seconds),
        **more,
    }


def result(**settings: Any) -> dict[str, Any]:
    rows = [
        row("ours", [1.0, 2.0, 4.0]),
        row("hf", [2.0, 2.2, 8.0], note="slow <here>"),
        {"label": "litgpt", "status": "skipped", "reason": "not installed"},
    ]
    summarize(rows, {"hf": "ours", "ours": "ours", "litgpt": "ours"})
    return {
        "schema": 1,
        "kind": "run",
        "title": "S: a model & its batch",
        "unit": "tokens/s",
        "columns": ["rate", "ratio", "memory"],
        "date": "2030-01-02T03:04:05+00:00",
        "command": "python -m benchmarks run --workload S",
        "settings": {
            "name_parts": ["S", "32-true"],
            "quick": False,
            "threads": 2,
            "allocator": "default",
            "pace": {"rounds": 3, "steps": 5},
            **settings,
        },
        "machine": {"cpu": "A processor", "cores": 2, "busy_cores_before": 0.1},
        "versions": {"torch": "2.13.0"},
        "rows": rows,
    }


def test_ratios_are_taken_within_rounds() -> None:
    _, hf, skipped = result()["rows"]
    assert hf["median_seconds"] == 2.2
    assert hf["rate"] == pytest.approx(100 / 2.2)
    assert hf["ratio"] == 2.0  # median of 2, 1.1 and 2; not 2.2 / 2
    assert hf["ratio_range"] == pytest.approx([1.1, 2.0])
    assert "ratio" not in skipped


def test_ratios_are_per_unit_of_work() -> None:
    rows = [row("pad", [1.0], units=30.0), row("packed", [1.2], units=90.0)]
    summarize(rows, {"packed": "pad"})
    assert rows[1]["ratio"] == pytest.approx(0.4)


def test_the_console_table_has_figures_and_reasons() -> None:
    text = text_table(result())
    assert "2.00 (1.10 to 2.00) of ours" in text
    assert "skipped: not installed" in text


def test_the_page_shows_the_last_result_of_its_kind(tmp_path: Path) -> None:
    first, last, quick = result(), result(), result(quick=True)
    first["rows"][0]["rate"], first["date"] = 11111.0, "2029-01-01T00:00:00+00:00"
    quick["rows"][0]["rate"], quick["date"] = 22222.0, "2031-01-01T00:00:00+00:00"
    for content in (first, last, quick):
        write_result(content, tmp_path / "results")
    page = write_page(tmp_path / "results", tmp_path / "docs").read_text()
    assert "| hf | 45.5 | 2.00 (1.10 to 2.00) of ours | 1 |" in page
    assert "11,111" not in page
    assert "22,222" not in page
    assert "python -m benchmarks run --workload S" in page
    assert "A processor, 2 threads" in page
    [chart] = (tmp_path / "docs" / "assets" / "benchmarks").glob("*.svg")
    assert f"assets/benchmarks/{chart.name}" in page


def test_a_busy_machine_is_said_so(tmp_path: Path) -> None:
    busy = result()
    busy["machine"]["busy_cores_before"] = 4.2
    write_result(busy, tmp_path / "results")
    page = write_page(tmp_path / "results", tmp_path / "docs").read_text()
    assert "not idle (4.2 cores busy before)" in page


def test_nothing_measured_is_no_page(tmp_path: Path) -> None:
    write_result(result(quick=True), tmp_path)
    with pytest.raises(ValueError, match="no result that is worth a page"):
        write_page(tmp_path, tmp_path)


def test_a_chart_is_well_formed_and_to_scale() -> None:
    tree = ElementTree.fromstring(bar_chart(result()))
    bars = tree.findall("{http://www.w3.org/2000/svg}rect")
    lengths = [float(bar.attrib["width"]) for bar in bars]
    assert lengths[1] / lengths[0] == pytest.approx(2.0 / 2.2, rel=1e-3)


def test_files_are_not_overwritten_and_schemas_are_checked(tmp_path: Path) -> None:
    path = write_result(result(), tmp_path)
    assert path.name == "2030-01-02T030405_run_S_32-true.json"
    with pytest.raises(FileExistsError):
        write_result(result(), tmp_path)
    assert read_results(tmp_path)[0]["rows"][1]["ratio"] == 2.0
    other = copy.deepcopy(result())
    other["schema"], other["date"] = 99, "2031-01-02T03:04:05+00:00"
    write_result(other, tmp_path)
    with pytest.raises(ValueError, match="schema=99, expected 1"):
        read_results(tmp_path)


def test_everyone_gets_the_same_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MALLOC_MMAP_MAX_" in worker_environment("glibc-tuned", 1)
    assert worker_environment("tcmalloc", 1, "libt.so")["LD_PRELOAD"] == "libt.so"
    with pytest.raises(ValueError, match="allocator='jemalloc' must be one of"):
        worker_environment("jemalloc", 1)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(ValueError, match="apt-get install libtcmalloc"):
        worker_environment("tcmalloc", 1)


def test_the_machine_is_described() -> None:
    described = describe_machine()
    assert described["cpu"]
    assert described["cores"] >= 1


def test_tables_stand_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- benchmark: x -->\nold\n<!-- end -->\nb\n<!-- end -->\n")
    fill(page, {"x": "| new |", "absent": "| no |"})
    assert page.read_text() == (
        "a\n<!-- benchmark: x -->\n\n| new |\n\n<!-- end -->\nb\n<!-- end -->\n"
    )
    fill(page, {"x": ""})
    assert "| new |" in page.read_text()
    fill(tmp_path / "absent.md", {"x": "| new |"})
    assert not (tmp_path / "absent.md").exists()


def test_the_summary_tells_shipped_from_tuned() -> None:
    shipped, tuned = result(), result()
    for content, ours in ((shipped, "ours+compile+fused"), (tuned, "ours+compile")):
        content["settings"] |= {"workload": "S", "precision": "bf16-mixed"}
        content["rows"] = [
            {"label": ours, "baseline": ours, "ratio": 1.0},
            {
                "label": "hf_trainer+x",
                "baseline": ours,
                "ratio": 1.5 if content is shipped else 1.04,
            },
            {"label": "litgpt", "status": "skipped"},
        ]
    assert summary_table([shipped, tuned]).splitlines()[2:] == [
        "| Hugging Face Trainer, as shipped | 1.50 |",
        "| Hugging Face Trainer, tuned alike | 1.04 (a tie) |",
    ]
    assert summary_table([]) == ""
