"""What `plan` says of memory and traffic, against what real ranks hold and send."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import planned_runs
import pytest
from fsdp2_runs import spawn
from kept_memory import SHARED_CASES, SPLIT_CASES, run_of

from lightning_llm.planning.activations import trace_activations
from lightning_llm.planning.collectives import Collective
from lightning_llm.planning.communication import plan_communication
from lightning_llm.planning.memory import plan_memory
from lightning_llm.planning.optimizer_states import optimizer_of
from lightning_llm.planning.shards import shard_units
from lightning_llm.strategies import FSDP2Strategy

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of torch.distributed and Lightning's data loops
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawn(planned_runs.watch_two, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawn(planned_runs.watch_four, 4, tmp_path_factory.mktemp("four"))


def planned(case: planned_runs.Case, ranks: int) -> tuple[Any, dict[str, list[int]]]:
    run = planned_runs.run_of(case, ranks)
    units, optimizer = shard_units(run.module, run.parallelism), optimizer_of(run.module)
    collectives = plan_communication(run, units, optimizer)
    return plan_memory(run, units, optimizer), totals(collectives)


def totals(collectives: list[Collective]) -> dict[str, list[int]]:
    calls, sizes = Counter[str](), Counter[str]()
    for each in collectives:
        calls[each.operation] += each.calls
        sizes[each.operation] += each.bytes
    return {operation: [calls[operation], sizes[operation]] for operation in calls}


def check_memory(memory: Any, ranks: list[dict[str, Any]]) -> None:
    for part in ("weights", "gradients", "optimizer"):
        most = max(found[part] for found in ranks)
        assert getattr(memory, part) == pytest.approx(most, rel=0.05), part


TWO_RANKS = planned_runs.two_ranks() | planned_runs.split_over_two() | planned_runs.shared_by_two()
FOUR_RANKS = planned_runs.four_ranks() | planned_runs.shared_by_pairs()


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks(name: str, two: list[dict[str, Any]]) -> None:
    memory, collectives = planned(TWO_RANKS[name], 2)
    assert collectives == two[0][name]["collectives"]
    check_memory(memory, [found[name] for found in two])


KEPT = {
    "kept": ("tensor_parallel_size", SPLIT_CASES),
    "kept, shared": ("context_parallel_size", SHARED_CASES),
}


@pytest.mark.parametrize(
    ("part", "number"), [(part, n) for part, (_, cases) in KEPT.items() for n in range(len(cases))]
)
def test_activations_of_ranks_that_share(part: str, number: int, two: list[dict[str, Any]]) -> None:
    size, cases = KEPT[part]
    name, mode, mixed = cases[number]
    options: dict[str, Any] = {size: 2, "activation_checkpointing": mode}
    kept = trace_activations(run_of(name, FSDP2Strategy(**options), mixed), mode).kept
    tolerance = 0.15 if mode == "none" else 0.25  # as on one rank
    for found in two:
        assert kept == pytest.approx(found[part][number], rel=tolerance)


@pytest.mark.parametrize("name", FOUR_RANKS)
def test_four_ranks(name: str, four: list[dict[str, Any]]) -> None:
    memory, collectives = planned(FOUR_RANKS[name], 4)
    assert collectives == four[0][name]["collectives"]
    check_memory(memory, [found[name] for found in four])


@pytest.mark.parametrize("name", planned_runs.one_rank())
def test_one_rank(name: str, tmp_path: Path) -> None:
    case = planned_runs.one_rank()[name]
    memory, collectives = planned(case, 1)
    assert collectives == {}
    found = planned_runs.watch(case, 1)
    assert found["collectives"] == {}
    check_memory(memory, [found])
