"""Rows of docs/scaling.md are what the planner says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lightning_llm.cli.training  # noqa: F401  (its log handler, before output is captured)
from lightning_llm.cli import main

ROOT = Path(__file__).parents[2]
STRATEGY = "--trainer.strategy.init_args."


def report_of_8b(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    arguments = ["plan", "--config", str(ROOT / "recipes/pretrain/llama3_8b.yaml")]
    arguments += ["--config", str(ROOT / "recipes/hardware/fsdp2.yaml")]
    arguments += [f"{STRATEGY}compile=true", f"{STRATEGY}reduce_every_micro_batch=true"]
    assert main([*arguments, *more, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def row(start: str) -> list[str]:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def numbers(report: dict[str, Any]) -> list[str]:
    """M tokens a step, GB and tokens/s of a rank, MFU at most."""
    return [
        f"{report['tokens_per_step'] / 1e6:.1f}",
        f"{report['memory_bytes_per_rank']['total'] / 1e9:.1f}",
        f"{report['tokens_per_second_per_rank']:,.0f}" if report["fits"] else "does not fit",
        f"{100 * report['mfu_ceiling']:.1f} %" if report["fits"] else "",
    ]


@pytest.mark.parametrize("ranks_of_a_sequence", [1, 8])
def test_8b(ranks_of_a_sequence: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"{STRATEGY}activation_checkpointing=selective"]
    if ranks_of_a_sequence == 1:
        start, days = "| 8B | 64 |", ".1f"
        arguments += ["--world_size", "64"]
    else:
        start, days = "| 8B | 4,096 | 8 |", ".2f"
        arguments += ["--world_size", "4096", f"{STRATEGY}tensor_parallel_size=8"]
        arguments += ["--trainer.accumulate_grad_batches", "1"]
    report = report_of_8b(capsys, *arguments)
    assert row(start)[-5:] == [*numbers(report), format(report["days"], days)]


@pytest.mark.parametrize(
    ("start", "length", "accumulate", "shared"),
    [
        ("| 8B, 131,072 | 64 | 1 |", 131072, 1, {}),
        ("| 8B, 131,072 | 64 | 8 |", 131072, 4, {"context_parallel_size": 8}),
        ("| 8B, 131,072 | 64 | 8 by", 131072, 4, {"tensor_parallel_size": 8}),
        ("| 8B, 262,144 | 64 | 1 |", 262144, 1, {}),
        ("| 8B, 262,144 | 64 | 8 |", 262144, 2, {"context_parallel_size": 8}),
    ],
)
def test_8b_on_long_sequences(
    start: str,
    length: int,
    accumulate: int,
    shared: dict[str, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = report_of_8b(
        capsys,
        *("--world_size", "64", f"{STRATEGY}activation_checkpointing=full"),
        f"--model.init_args.config.max_seq_len={length}",
        f"--data.init_args.seq_len={length}",
        f"--trainer.accumulate_grad_batches={accumulate}",
        *(f"{STRATEGY}{name}={size}" for name, size in shared.items()),
    )
    assert row(start)[-4:] == numbers(report)
    if not report["fits"]:
        remedy = "strategy context_parallel_size: 4 with accumulate_grad_batches: 4"
        assert report["changes_to_fit"] == [remedy]
