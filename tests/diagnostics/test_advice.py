"""Each rule speaks when its fault is there, and names the key to set; a sound run gets none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_llm.diagnostics import Report, Setup, advise, as_text
from lightning_llm.diagnostics.advice import RULES

SOUND = Report(
    setup=Setup(
        device_type="cuda",
        device_memory_bytes=80 << 30,
        precision="bf16-mixed",
        has_fast_bf16=True,
        compiles=True,
        can_compile=True,
        is_fused=True,
        is_pinned=True,
        micro_batch_size=8,
        seq_len=1024,
        vocab_size=50304,
        allocator="glibc",
    ),
    steps=8,
    step_seconds=1.0,
    seconds={"data": 0.01, "forward": 0.3, "backward": 0.6, "optimizer": 0.05, "framework": 0.04},
    peak_memory_bytes=60 << 30,
    graph_breaks=0,
    recompiles=0,
    host_syncs_per_step=0.0,
    padding_fraction=0.01,
    document_leak=False,
    causal=True,
)
CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"causal": False}, {}, "see what comes after"),
    ({"document_leak": True}, {}, "documents leak"),
    ({}, {"detects_anomalies": True}, "trainer.detect_anomaly"),
    ({}, {"precision": "32-true"}, "bf16-mixed"),
    ({}, {"compiles": False}, "compile: true"),
    ({}, {"compiles": False, "world_size": 2}, "strategies.DDPStrategy with"),
    (
        {},
        {"compiles": False, "strategy": "FSDP2Strategy"},
        "lightning_llm.strategies.FSDP2Strategy",
    ),
    ({"graph_breaks": 2, "break_reasons": ["print"]}, {}, "2 places: print"),
    ({"recompiles": 3}, {}, "drop_last: true"),
    ({"host_syncs_per_step": 2.0}, {}, "waits for the device 2 times"),
    ({"host_syncs_per_step": 2.0}, {"log_every_n_steps": 1}, "raise trainer.log_every_n_steps"),
    ({"seconds": {"data": 0.2}}, {"num_workers": 2}, "num_workers of the data to 4"),
    ({"padding_fraction": 0.4}, {"packing": "pad"}, "packing: best_fit"),
    ({}, {"device_type": "cpu", "cores": 4, "allocator": None}, "OMP_NUM_THREADS=4"),
    ({}, {"device_type": "cpu"}, "MALLOC_MMAP_MAX_=0"),
    ({"allocator_speedup": 1.12}, {"device_type": "cpu"}, "1.12 times as fast"),
    ({}, {"is_fused": False}, "fused: true"),
    ({"seconds": {"optimizer": 0.5}}, {}, "the optimizer takes 50%"),
    (
        {"peak_memory_bytes": 9 << 30},
        {"accumulate": 8, "micro_batch_size": 1},
        "micro_batch_size to 2",
    ),
    ({"peak_memory_bytes": 9 << 30}, {"activation_checkpointing": "full"}, "set it to none"),
    ({}, {"vocab_size": 50257}, "50,304"),
    ({}, {"is_pinned": False}, "pin_memory=True"),
    ({"callback_seconds": {"Slow": 0.2, "Quick": 0.001}}, {}, "Slow 20%"),
]


def test_a_sound_run_needs_no_advice() -> None:
    assert advise(SOUND) == []
    assert "nothing to improve" in as_text(SOUND)


@pytest.mark.parametrize(("faults", "setup", "expected"), CASES, ids=[c[2] for c in CASES])
def test_a_fault_gets_its_advice_alone(
    faults: dict[str, Any], setup: dict[str, Any], expected: str
) -> None:
    [advice] = advise(replace(SOUND, setup=replace(SOUND.setup, **setup), **faults))
    assert expected in advice


def test_every_rule_has_a_case() -> None:
    spoken = {
        rule
        for faults, setup, _ in CASES
        for rule in RULES
        if rule(replace(SOUND, setup=replace(SOUND.setup, **setup), **faults))
    }
    assert spoken == set(RULES)


def test_an_allocator_that_brings_nothing_is_left_alone() -> None:
    setup = replace(SOUND.setup, device_type="cpu")
    assert advise(replace(SOUND, setup=setup, allocator_speedup=1.01)) == []


def test_what_is_not_known_is_said_so() -> None:
    text = as_text(Report(Setup()))
    assert "not known" in text
    assert "not tested" in text
