"""`FSDP2Strategy(context_parallel_size=2)` on two and four ranks against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import check_context_parallel as check
import pytest
import torch
from fsdp2_runs import fit, spawn
from ranks import run_on_ranks
from strategy_models import Foreign
from test_tensor_parallel import assert_same_state, assert_same_training
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from lightning_llm.models.context import ContextShard
from lightning_llm.plugins import AtomicCheckpointIO
from lightning_llm.strategies.context_parallel import ContextParallel

distributed = pytest.mark.distributed
pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch.distributed and Lightning


class Mesh:
    """Of two ranks, of which this is the second."""

    def size(self) -> int:
        return 2

    def get_local_rank(self) -> int:
        return 1


MESH: Any = Mesh()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("context_parallel")


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    return {
        "grouped": fit(check.grouped),
        "accumulated": fit(check.grouped, accumulate_grad_batches=3),
        "windowed": fit(check.windowed),
        "windowed, accumulated": fit(check.windowed, accumulate_grad_batches=2),
    }


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    return spawn(check.two_ranks, 2, directory)


@distributed
@pytest.mark.parametrize("count", [2, 4])
def test_the_loss_is_that_of_one_process(count: int, tmp_path: Path) -> None:
    one = check.losses()
    for rank in run_on_ranks(check.losses_on_ranks, count, tmp_path, tmp_path):
        assert rank.keys() == (one.keys() if count == 2 else set(check.FOUR))
        for name in rank:
            wanted = one[name]
            assert rank[name]["tokens"] == wanted["tokens"]
            assert rank[name]["nll"] == pytest.approx(wanted["nll"], rel=1e-6), name
            for weight, gradient in wanted["gradients"].items():
                found = rank[name]["gradients"][weight]
                assert_close(found, gradient, rtol=1e-5, atol=1e-6, msg=f"{name}: {weight}")


@distributed
@pytest.mark.parametrize(
    ("run", "reference"),
    [
        ("grouped", "grouped"),
        ("accumulated", "accumulated"),
        ("windowed", "windowed"),
        ("compiled", "grouped"),
    ],
)
def test_two_ranks_train_like_one(single: Any, ranks: Any, run: str, reference: str) -> None:
    for rank in ranks:
        assert_same_training(rank[run], single[reference])


@distributed
def test_four_ranks_train_like_one(single: Any, directory: Path) -> None:
    for rank in spawn(check.four_ranks, 4, directory):
        assert_same_training(rank["layers"], single["grouped"])
        assert_same_training(rank["batches"], single["windowed, accumulated"])
        assert_same_training(rank["copies"], single["grouped"])


@distributed
def test_bfloat16_stays_close(single: Any, ranks: Any) -> None:
    wanted, start = single["grouped"]["weights"], single["grouped"]["start"]["weights"]
    for name, value in wanted.items():
        change = (value - start[name]).norm()
        assert (ranks[0]["bf16"]["weights"][name] - value).norm() < 0.4 * change, name


@distributed
def test_checkpoints_cross_layouts_exactly(ranks: Any, directory: Path) -> None:
    for rank in ranks:
        assert_same_state(rank["unshared"]["start"], rank["grouped"]["saved"])
    resumed = fit(
        check.grouped,
        seed=9,
        ckpt_path=directory / "shared.ckpt",
        plugins=[AtomicCheckpointIO()],
        max_steps=5,
    )
    assert_same_state(resumed["start"], ranks[0]["grouped"]["saved"])


# ---------------------------------------------------------------------- shares


def test_ranks_have_an_early_and_a_late_chunk() -> None:
    shard = ContextShard(MESH)
    ids = torch.arange(8)[None]
    assert shard.split(ids).tolist() == [[2, 3, 4, 5]]
    assert shard.positions(4, torch.device("cpu")).tolist() == [2, 3, 4, 5]


def test_operations_may_be_watched() -> None:
    with FlopCounterMode(display=False):
        ContextShard(MESH).prepare(16)


def test_the_module_is_left_as_it_was() -> None:
    lm = check.module()
    before = lm.compute_loss(check.batch())
    shared = ContextParallel(lm, MESH)
    assert lm.model.context is shared.shard is lm.model.blocks[0].attention.context
    with shared.alone():
        assert lm.model.context is None
    shared.undo()
    assert_close(lm.compute_loss(check.batch()), before, rtol=0, atol=0)


# ---------------------------------------------------------------------- what is refused


def test_sequences_must_divide() -> None:
    with pytest.raises(ValueError, match="18 tokens in a row; make seq_len a multiple of 4"):
        ContextShard(MESH).split(torch.zeros(1, 18))


def test_module_of_others_is_refused() -> None:
    with pytest.raises(ValueError, match=r"for Foreign use context_parallel_size=1"):
        ContextParallel(Foreign(), MESH)


def test_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="routers of n_experts balance whole sequences"):
        ContextParallel(check.module(n_experts=4), MESH)
