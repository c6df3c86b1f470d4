"""A row of docs/scaling.md is what the planner says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lightning_llm.cli.training  # noqa: F401  (its log handler, before output is captured)
from lightning_llm.cli import main

ROOT = Path(__file__).parents[2]


def test_8b_on_64_devices(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = "--trainer.strategy.init_args."
    arguments = ["plan", "--config", str(ROOT / "recipes/pretrain/llama3_8b.yaml")]
    arguments += ["--config", str(ROOT / "recipes/hardware/fsdp2.yaml"), "--world_size", "64"]
    arguments += [f"{strategy}compile=true", f"{strategy}activation_checkpointing=selective"]
    arguments += [f"{strategy}reduce_every_micro_batch=true", "--format", "json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith("| 8B | 64 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == [
        f"{report['tokens_per_step'] / 1e6:.1f}",
        f"{report['memory_bytes_per_rank']['total'] / 1e9:.1f}",
        f"{report['tokens_per_second_per_rank']:,.0f}",
        f"{100 * report['mfu_ceiling']:.1f} %",
        f"{report['days']:.1f}",
    ]
