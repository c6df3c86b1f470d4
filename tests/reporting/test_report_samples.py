"""The texts that callbacks leave in a run, as tables of its page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import (
    AnswerMonitor,
    BLEUMonitor,
    RunReport,
    SampleText,
    SyntaxMonitor,
)
from lightning_llm.reporting import read_run, render_report

HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(1)>"


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """Title -> rows of cells, the head first; a cell that spans rows is in each of them."""
    tables = {}
    for title, table in re.findall(
        r"<summary>([^<]*)</summary>(?:<p>[^<]*</p>\n)?(<table class='samples'>.*?</table>)",
        page,
        re.DOTALL,
    ):
        rows: list[list[str]] = []
        spanning: dict[int, tuple[str, int]] = {}
        for tr in ET.fromstring(table):
            cells = list(tr)
            width = len(rows[0]) if rows else len(cells)
            row = []
            for place in range(width):
                text, left = spanning.pop(place, ("", 0))
                if not left:
                    cell = cells.pop(0)
                    text, left = cell.text or "", int(cell.get("rowspan", "1"))
                row.append(text)
                if left > 1:
                    spanning[place] = (text, left - 1)
            assert not cells
            rows.append(row)
        assert not spanning
        tables[title] = rows
    return tables


def write_samples(directory: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (directory / "metrics.csv").write_text("step\n")
    lines = [json.dumps({"epoch": 0, **row}) for row in rows]
    (directory / name).write_text("\n".join(lines) + "\n")


class Writer(L.LightningModule):
    """Has texts to compare, and a ``generate`` that writes something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        output = f"a cat {self.global_step} {HOSTILE}"
        return {"predictions": [output], "references": [["a cat", "the cat"]]}

    def generate(self, prompts: list[str]) -> list[str]:
        self.calls += 1
        return [f"{self.calls} {HOSTILE}" for _ in prompts]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_callback_of_texts_has_its_table(tmp_path: Path) -> None:
    monitors = [BLEUMonitor(), AnswerMonitor(), SampleText(["Once"])]
    monitors += [SyntaxMonitor(["x = "], samples_per_prompt=1)]
    logger = CSVLogger(tmp_path)
    rows = torch.utils.data.DataLoader([{"sources": "eine Katze"}] * 2)
    L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        callbacks=[*monitors, RunReport()],
        num_sanity_val_steps=0,
        limit_val_batches=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Writer(), rows, rows)
    page = (Path(logger.log_dir) / "report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    tables = tables_of(page)
    compared = [["source", "step", "reference", "output"]]
    compared += [
        ["eine Katze", str(step), "a cat | the cat", f"a cat {step} {HOSTILE}"] for step in (2, 4)
    ]
    assert tables["BLEU samples"] == tables["Answer samples"] == compared
    # SyntaxMonitor writes before SampleText: at the end of the epoch, not of validation.
    assert tables["Samples"] == [
        ["prompt", "step", "text"],
        ["Once", "2", f"2 {HOSTILE}"],
        ["Once", "4", f"4 {HOSTILE}"],
    ]
    assert tables["Syntax samples"] == [
        ["prompt", "step", "text", "valid"],
        ["x = ", "2", f"1 {HOSTILE}", "False"],
        ["x = ", "4", f"3 {HOSTILE}", "False"],
    ]


def test_a_prompt_is_followed_over_the_steps(tmp_path: Path) -> None:
    rows = [
        {"step": step, "prompt": prompt, "text": f"{prompt}{step}"}
        for step in (10, 20, 30)
        for prompt in ("a", "b")
    ]
    write_samples(tmp_path, "samples.jsonl", rows)
    page = render_report([read_run(tmp_path)])
    assert page.count('rowspan="3">a<') == 1
    _, *body = tables_of(page)["Samples"]
    assert body == [[p, str(s), f"{p}{s}"] for p in ("a", "b") for s in (10, 20, 30)]


def test_columns_without_texts_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"step": step, "source": "", "reference": reference, "output": f"{reference}{step}"}
        for step in (1, 2)
        for reference in ("x", "y")
    ]
    write_samples(tmp_path, "bleu_samples.jsonl", rows)
    assert tables_of(render_report([read_run(tmp_path)]))["BLEU samples"] == [
        ["reference", "step", "output"],
        *[[r, str(s), f"{r}{s}"] for r in ("x", "y") for s in (1, 2)],
    ]


def test_many_steps_are_thinned_and_the_page_says_so(tmp_path: Path) -> None:
    rows = [{"step": step, "prompt": p, "text": "t"} for step in range(1000) for p in "abcd"]
    write_samples(tmp_path, "samples.jsonl", rows)
    page = render_report([read_run(tmp_path)])
    _, *body = tables_of(page)["Samples"]
    steps = [int(step) for prompt, step, _ in body if prompt == "a"]
    assert len(body) == 200
    assert (steps[0], steps[-1]) == (0, 999)
    gaps = {after - before for before, after in pairwise(steps)}
    assert gaps <= {20, 21}
    assert "950 steps between the first and the last are left out" in page


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "[1]",
        "null",
        "{{{",
        "[" * 100_000,
        '{"step": 1}',
        '{"text": "a"}',
        '{"step": "x", "text": "a"}',
        '{"step": NaN, "text": "a"}',
    ],
    ids=range(9),
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str) -> None:
    write_samples(tmp_path, "samples.jsonl", [{"step": 1, "prompt": "p", "text": None}])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(line + "\n")
    run = read_run(tmp_path)
    assert run.problems == ["samples.jsonl, line 2: left out, not a sample"]
    assert tables_of(render_report([run]))["Samples"][1] == ["p", "1", "None"]
