"""Every measurement runs through, and what it compares is the same work."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cli import MEASURES, build_parser, main
from benchmarks.measures import (
    architecture,
    generate,
    ladder,
    loss,
    overhead,
    steps_to_loss,
    tokenize,
)
from benchmarks.pacing import Message, Pace, Pacer, UnavailableError
from benchmarks.plan import Plan
from benchmarks.race import Task
from benchmarks.results import read_results
from benchmarks.training import TrainOptions, random_tokens
from benchmarks.worker import resolve

pytestmark = pytest.mark.filterwarnings("ignore")


def plans_of(measure: str, *words: str, folder: Path) -> list[Plan]:
    """Plan a quick measurement."""
    args: Namespace = build_parser(measure).parse_args([measure, "--quick", *words])
    args.python = {}
    module = importlib.import_module(f"benchmarks.measures.{MEASURES[measure][0]}")
    return module.plan(args, folder)


def run_here(task: Task) -> list[Message]:
    """Run a contender in this process; skip if it is not installed."""
    messages: list[Message] = []
    pace = Pace(warmup=1, rounds=1, steps=1, settle=0)
    try:
        resolve(task.run)(
            dict(task.options), Pacer(pace, report=messages.append, wait=lambda: None)
        )
    except UnavailableError as reason:
        pytest.skip(str(reason))
    assert [message["event"] for message in messages] == ["first_step", "ready", "turn"]
    return messages


@pytest.mark.parametrize("name", loss.IMPLEMENTATIONS)
def test_losses_are_equal(name: str, tmp_path: Path) -> None:
    [plan] = plans_of("loss", "--vocab", "128", "--dtype", "float32", folder=tmp_path)
    task = next(task for task in plan.tasks if task.label == name)
    _, ready, turn = run_here(task)
    hidden, weight, labels = reference_inputs(task.options)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels)
    assert ready["losses"] == pytest.approx([float(expected)], rel=1e-5)
    assert turn["extra_memory_bytes"] >= 0


def reference_inputs(options: Any) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    loss._inputs(64, min(options["vocab"], 256), options["dim"], torch.float32, "cpu")
    sizes = options["tokens"], options["vocab"], options["dim"]
    return loss._inputs(*sizes, torch.float32, "cpu")


def test_encoders_give_as_many_ids_as_ours(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        tokenize, "read_texts", lambda files, limit: ["def f(x):\n  return x\n"] * 9
    )
    [plan] = plans_of("tokenize", folder=tmp_path)
    counts = {}
    for task in plan.tasks:
        try:
            messages: list[Message] = []
            pacer = Pacer(
                Pace(warmup=1, rounds=1, steps=1), report=messages.append, wait=lambda: None
            )
            resolve(task.run)(dict(task.options), pacer)
            counts[task.label] = messages[1]["ids"]
        except UnavailableError:
            continue
    assert {"ours", "ours_to_store", "encode_batch_fast"} <= set(counts)
    # Line ends are in rows of their own there, not merged with what follows.
    assert counts.pop("ours_rows_to_store") >= counts["ours"]
    assert len(set(counts.values())) == 1


def test_texts_are_whole_files_up_to_a_limit(tmp_path: Path) -> None:
    for name, text in (("a", "x" * 6), ("b", "y" * 6), ("c", "z" * 6)):
        (tmp_path / name).write_text(text)
    (tmp_path / "bad").write_bytes(b"\xff\xfe\xfa")
    names = [str(tmp_path / name) for name in ("bad", "a", "b", "c")]
    assert tokenize.read_texts(names, 10) == ["x" * 6, "y" * 6]
    assert tokenize.read_texts(None, 1000)


@pytest.mark.parametrize(
    "reader", ["ours", "ours_documents", "random_windows", "data_loader", "datasets"]
)
def test_readers_read(reader: str, tmp_path: Path) -> None:
    words = ("--tokens", "40000", "--seq-len", "32", "--batch", "4")
    [plan] = plans_of("loader", *words, folder=tmp_path)
    task = next(task for task in plan.tasks if task.label == reader)
    _, ready, _ = run_here(task)
    assert ready["units_per_step"] == 4 * 32


@pytest.mark.parametrize("name", ["transformers", "litgpt"])
def test_decoders_write_the_same_text(name: str) -> None:
    options = TrainOptions("tiny-llama", batch=2)
    prompts = random_tokens(options)[:2, :5]
    with torch.no_grad():
        try:
            found = generate.DECODERS[name](options)(prompts, 8)
        except UnavailableError as reason:
            pytest.skip(str(reason))
        assert found.tolist() == generate.DECODERS["ours"](options)(prompts, 8).tolist()


@pytest.mark.parametrize("name", overhead.LOOPS)
def test_loops_of_one_weight_run(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    [plan] = plans_of("overhead", folder=tmp_path)
    run_here(next(task for task in plan.tasks if task.label == name))


@pytest.mark.parametrize("saver", ["ours", "ours_asynchronous", "lightning", "torch_save"])
def test_savers_save(saver: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    [plan] = plans_of("checkpoint", "--workload", "tiny", folder=tmp_path)
    run_here(next(task for task in plan.tasks if task.label == saver))
    assert (tmp_path / "run.ckpt").stat().st_size > 100_000


def test_the_ladder_counts_text_and_not_padding(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    [plan] = plans_of("ladder", "--workload", "tiny", folder=tmp_path)
    tasks = {task.label: task for task in plan.tasks}
    padded = run_here(tasks["base"])[1]["units_per_step"]
    packed = run_here(tasks["packing alone"])[1]["units_per_step"]
    assert padded < 0.5 * 2 * 16
    assert packed > 0.9 * 2 * 16


def test_rungs_are_measured_alone_and_stacked() -> None:
    assert ladder.steps_of(["packing", "bf16", "compile"]) == {
        "base": [],
        "packing alone": ["packing"],
        "bf16 alone": ["bf16"],
        "compile alone": ["compile"],
        "+ bf16": ["packing", "bf16"],
        "+ compile": ["packing", "bf16", "compile"],
    }


def test_steps_to_the_best_rival_of_the_same_seed() -> None:
    rows: list[dict[str, Any]] = [
        {"label": "adamw lr 0.1 steps 30 seed 1", "losses": [4.0, 3.0, 2.0]},
        {"label": "adamw lr 0.2 steps 30 seed 1", "losses": [4.0, 3.0, 2.5]},
        {"label": "adamw lr 0.1 steps 30 seed 2", "losses": [4.0, 3.0, 1.0]},
        {"label": "muon lr 0.1 steps 20 seed 1", "losses": [3.0, 1.9, 1.8]},
        {"label": "muon lr 0.1 steps 10 seed 1", "losses": [1.5, 2.6, 2.5]},
        {"label": "muon lr 0.1 steps 20 seed 2", "losses": [3.0, 1.9, 1.8]},
    ]
    steps_to_loss.finish(rows)
    assert [row.get("steps_to_loss") for row in rows] == [None, None, None, 20, None, None]
    # What it ends with, after its own steps.
    assert rows[4]["losses"] == [1.5, 2.5]


def test_parts_of_the_architecture_alone_and_together(tmp_path: Path) -> None:
    words = ("--layers", "2", "--dim", "32", "--seq-len", "16")
    [plan] = plans_of("architecture", *words, folder=tmp_path)
    tasks = {task.label: task for task in plan.tasks}
    alone = [task.options for name, task in tasks.items() if name not in ("plain", "all")]
    fields = {key: value for options in alone for key, value in options.get("fields", {}).items()}
    assert tasks["all"].options["fields"] == fields
    assert not {"fields"} & set(tasks["plain"].options)
    losses = {name: run_here(tasks[name])[1]["losses"] for name in ("plain", "WSD", "all")}
    assert losses["plain"] == losses["WSD"]  # the first step of both schedules is the same
    assert losses["plain"] != losses["all"]


def test_steps_to_the_plain_model() -> None:
    rows: list[dict[str, Any]] = [
        {"label": "plain", "losses": [4.0, 3.0, 2.0]},
        {"label": "Muon", "losses": [3.0, 1.9, 1.8]},
        {"label": "untied head", "losses": [4.0, 3.0, 2.1]},
        {"label": "WSD", "status": "failed"},
    ]
    architecture.finish(rows)
    assert [row.get("steps_to_loss", 0) for row in rows] == [0, 40, None, 0]
    architecture.finish([{"label": "plain", "status": "failed"}])


def test_the_command_writes_a_result(tmp_path: Path, capsys: Any) -> None:
    words = "run --workload tiny --contenders nanogpt,hf --quick --threads 1".split()
    main([*words, "--results", str(tmp_path)])
    [result] = read_results(tmp_path)
    nanogpt, hf = result["rows"]
    assert nanogpt["status"] == hf["status"] == "ok"
    assert nanogpt["first_losses"] == pytest.approx(hf["first_losses"], abs=2e-5)
    assert hf["baseline"] == "nanogpt"
    assert str(tmp_path) not in result["command"]
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_help(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--rounds" in capsys.readouterr().out
