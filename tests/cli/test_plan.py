"""`lightning-llm plan`: a report for people, one for programs, and what cannot be planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lightning_llm.cli.training  # noqa: F401  (its log handler, before output is captured)
from lightning_llm.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = ("--config", str(RECIPES / "pretrain" / "llama3_8b.yaml"))
STRATEGY = "--trainer.strategy.init_args."
SHARDED = ("--config", str(RECIPES / "hardware" / "fsdp2.yaml"))


def plan(capsys: Any, *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return str(capsys.readouterr().out)


def test_json_of_llama_3_8b_on_4096_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(plan(capsys, *RECIPE, *SHARDED, "--world_size", "4096", "--format", "json"))
    assert report["parameters"] == 8_030_261_248  # Meta's count
    assert report["world_size"] == report["shards"] == 4096
    assert report["tokens_per_step"] == 4096 * 8 * 8192
    # float32 weights, gradients and AdamW's two states: 16 bytes per weight over the ranks.
    memory = report["memory_bytes_per_rank"]
    states = memory["weights"] + memory["gradients"] + memory["optimizer"]
    # At most a row more of each weight on the rank that has most.
    assert 1.0 <= states / (16 * report["parameters"] / 4096) < 1.15
    assert memory["total"] > states
    assert report["fits"] == (memory["total"] <= memory["available"])
    assert 0 < report["mfu_ceiling"] < 1
    assert report["tokens_per_second"] == pytest.approx(
        report["tokens_per_step"] / report["step_seconds"]
    )
    hours = report["gpu_hours"] / 4096 * 3600 * report["tokens_per_second"]
    assert hours == pytest.approx(report["tokens"], rel=1e-6)


def test_what_does_not_fit_is_told_with_a_remedy_that_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = json.loads(plan(capsys, *RECIPE, "--world_size", "1", "--format", "json"))
    assert not report["fits"]
    assert report["changes_to_fit"]
    assert report["total_after_changes"] <= report["memory_bytes_per_rank"]["available"]
    # Of two values for one setting the last is told alone.
    subjects = [change.partition(":")[0] for change in report["changes_to_fit"]]
    assert len(set(subjects)) == len(subjects)
    assert sum("devices" in change for change in report["changes_to_fit"]) <= 1


def test_text_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, *RECIPE, *SHARDED, "--world_size", "64")
    for part in (
        "64 x h100",
        "8,030,261,248",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "all_gather",
        "reduce_scatter",
        "tokens/s",
        "MFU at most",
        "GPU-hours",
        "a prediction, not a measurement",
    ):
        assert part in text, part


def test_ranks_that_share_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    shared = (*RECIPE, *SHARDED, f"{STRATEGY}context_parallel_size=4", "--world_size", "32")
    text = plan(capsys, *shared)
    assert "every sequence shared by 4" in text
    assert "8 groups of ranks" in text
    report = json.loads(plan(capsys, *shared, "--format", "json"))
    assert (report["context_parallel"], report["tensor_parallel"]) == (4, 1)
    assert report["shards"] == 32
    assert report["tokens_per_step"] == 8 * 8 * 8192
    keys = [each for each in report["collectives"] if each["over"] == "context"]
    # Of 32 layers and 8 micro-batches: keys and values of 8 heads of 128, in bfloat16.
    size = 32 * 8 * 2 * 8 * 128 * 8192 * 2
    found = {each["operation"]: (each["calls"], each["bytes"]) for each in keys}
    assert found["all_gather"] == found["reduce_scatter"] == (32 * 8, size)
    assert not any(each["overlaps"] for each in keys)


def test_documents_have_masks(capsys: pytest.CaptureFixture[str]) -> None:
    kept = []
    small = ("--config", str(RECIPES / "quickstart.yaml"), "--trainer.precision=bf16-mixed")
    for packing in ("concat", "best_fit"):
        packed = (*small, f"--data.init_args.packing={packing}", "--format", "json")
        report = json.loads(plan(capsys, *packed))
        kept.append(report["memory_bytes_per_rank"]["activations"])
    assert kept[1] - kept[0] == report["micro_batch_size"] * report["seq_len"] ** 2 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "abacus"), "abacus"),
        (("--world_size", "0"), "world_size=0"),
        (("--tokens", "-5"), "tokens=-5 must be at least 1"),
        (("--data.init_args.seq_len", "9000"), "max_seq_len=8192"),
        (("--trainer.strategy", "deepspeed_stage_2"), "deepspeed"),
        (
            (
                *SHARDED,
                "--trainer.strategy.init_args.tensor_parallel_size=16",
                "--world_size",
                "32",
            ),
            "tensor_parallel_size=16: n_kv_heads=8 is no multiple of 16",
        ),
        (
            (
                *SHARDED,
                "--trainer.strategy.init_args.tensor_parallel_size=2",
                "--data.init_args.seq_len=1023",
                "--world_size",
                "8",
            ),
            "seq_len=1023 is no multiple of it; use seq_len=1022",
        ),
        (
            (
                *SHARDED,
                "--trainer.strategy.init_args.tensor_parallel_size=2",
                "--world_size",
                "9",
            ),
            "must multiply to world_size=9",
        ),
        (
            (
                *SHARDED,
                f"{STRATEGY}context_parallel_size=2",
                f"{STRATEGY}tensor_parallel_size=2",
                "--data.init_args.seq_len=1022",
                "--world_size",
                "8",
            ),
            "seq_len=1022 is no multiple of 4; use seq_len=1020",
        ),
        (
            (
                *SHARDED,
                f"{STRATEGY}context_parallel_size=2",
                "--model.init_args.config.n_experts=4",
                "--world_size",
                "8",
            ),
            "the routers of n_experts balance whole sequences",
        ),
    ],
)
def test_what_cannot_be_planned_is_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    try:
        code = main(["plan", *RECIPE, *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code != 0
    assert message in capsys.readouterr().err


def test_the_vocabulary_is_the_one_that_the_tokenizer_is_trained_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quickstart = ("--config", str(RECIPES / "quickstart.yaml"), "--format", "json")
    few = json.loads(plan(capsys, *quickstart, "--data.init_args.tokenizer.vocab_size=1000"))
    many = json.loads(plan(capsys, *quickstart))
    assert many["parameters"] - few["parameters"] == (4096 - 1000) * 256
    assert many["parameters"] == 4_262_144  # what the run counts


def test_a_network_of_transformers_is_refused_before_its_weights_are_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "--config", str(RECIPES / "finetune" / "lora.yaml")]) == 1
    assert "HFCausalLM cannot be planned" in capsys.readouterr().err


def test_what_a_plan_cannot_know_of_the_length_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "epochs.yaml"
    overlay.write_text(
        "trainer:\n  max_epochs: 3\n  callbacks:\n"
        "    - class_path: lightning.pytorch.callbacks.GradientAccumulationScheduler\n"
        "      init_args:\n        scheduling: {0: 4, 2: 8}\n"
    )
    arguments = ("plan", "--config", str(RECIPES / "quickstart.yaml"), "--format", "json")
    assert main([*arguments]) == 0
    once = capsys.readouterr()
    assert "note:" not in once.err
    assert main([*arguments, "--config", str(overlay)]) == 0
    bounded = capsys.readouterr()
    assert "max_epochs=3 may end the run before" in bounded.err
    assert "planned with the 4 micro-batches of epoch 0" in bounded.err
    steps = [json.loads(said.out)["tokens_per_step"] for said in (once, bounded)]
    assert steps[1] == 4 * steps[0]
