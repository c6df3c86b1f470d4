"""Rows of docs/scaling.md are what the planner says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lightning_llm.cli.training  # noqa: F401  (its log handler, before output is captured)
from lightning_llm.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("ranks_of_a_sequence", [1, 8])
def test_8b(ranks_of_a_sequence: int, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = "--trainer.strategy.init_args."
    arguments = ["plan", "--config", str(ROOT / "recipes/pretrain/llama3_8b.yaml")]
    arguments += ["--config", str(ROOT / "recipes/hardware/fsdp2.yaml")]
    arguments += [f"{strategy}compile=true", f"{strategy}activation_checkpointing=selective"]
    arguments += [f"{strategy}reduce_every_micro_batch=true", "--format", "json"]
    if ranks_of_a_sequence == 1:
        start, days = "| 8B | 64 |", ".1f"
        arguments += ["--world_size", "64"]
    else:
        start, days = "| 8B | 4,096 | 8 |", ".2f"
        arguments += ["--world_size", "4096", f"{strategy}tensor_parallel_size=8"]
        arguments += ["--trainer.accumulate_grad_batches", "1"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith(start)]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-5:] == [
        f"{report['tokens_per_step'] / 1e6:.1f}",
        f"{report['memory_bytes_per_rank']['total'] / 1e9:.1f}",
        f"{report['tokens_per_second_per_rank']:,.0f}",
        f"{100 * report['mfu_ceiling']:.1f} %",
        format(report["days"], days),
    ]
