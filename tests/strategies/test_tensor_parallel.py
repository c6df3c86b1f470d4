"""`FSDP2Strategy(tensor_parallel_size=2)` on two and four ranks against one process."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import check_tensor_parallel as check
import pytest
import torch
from fsdp2_runs import fit, spawn
from strategy_models import Foreign
from torch.distributed.tensor import DTensor, Shard
from torch.testing import assert_close

from lightning_llm.losses import linear_cross_entropy
from lightning_llm.models import TransformerConfig
from lightning_llm.planning.pretended_ranks import pretended_ranks
from lightning_llm.plugins import AtomicCheckpointIO
from lightning_llm.strategies import FSDP2Strategy
from lightning_llm.strategies.tensor_parallel import (
    TensorParallel,
    find_problems,
    leave_out_advice,
)

distributed = pytest.mark.distributed
TWO_RANKS: Any = SimpleNamespace(size=lambda: 2)
pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch.distributed and Lightning


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensor_parallel")


@pytest.fixture(scope="module")
def single(directory: Path) -> dict[str, Any]:
    saved = {"save": directory / "one.ckpt", "plugins": [AtomicCheckpointIO()]}
    return {
        "grouped": fit(check.grouped, **saved),
        "accumulated": fit(check.grouped, accumulate_grad_batches=3),
        "untied": fit(check.untied),
        "untied, accumulated": fit(check.untied, accumulate_grad_batches=2),
        "parallel": fit(check.parallel_residual),
        "experts": fit(check.experts),
        "unbalanced": fit(check.unbalanced),
        "muon": fit(check.with_muon),
    }


@pytest.fixture(scope="module")
def ranks(single: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    return spawn(check.two_ranks, 2, directory)


@pytest.fixture(scope="module")
def mesh(ranks: list[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    return spawn(check.four_ranks, 4, directory)


def assert_same_training(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for part in ("weights", "optimizer"):
        assert found[part].keys() == wanted[part].keys()
        for name, value in wanted[part].items():
            assert_close(found[part][name], value, rtol=0, atol=1e-5, msg=name)
    assert_close(torch.tensor(found["norms"]), torch.tensor(wanted["norms"]), rtol=1e-5, atol=0)
    assert found["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-6)


def assert_same_state(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for part in ("weights", "optimizer"):
        assert found[part].keys() == wanted[part].keys()
        for name, value in wanted[part].items():
            assert torch.equal(found[part][name], value), name


@distributed
@pytest.mark.parametrize(
    ("run", "reference"),
    [
        ("grouped", "grouped"),
        ("accumulated", "accumulated"),
        ("untied", "untied"),
        ("parallel", "parallel"),
        ("experts", "experts"),
        ("experts, compiled", "experts"),
        ("compiled", "grouped"),
        ("one file", "grouped"),
    ],
)
def test_two_ranks_train_like_one(
    single: dict[str, Any], ranks: list[dict[str, Any]], run: str, reference: str
) -> None:
    for rank in ranks:
        assert_same_training(rank[run], single[reference])


@distributed
def test_two_groups_of_two_train_like_one(
    single: dict[str, Any], mesh: list[dict[str, Any]]
) -> None:
    for rank in mesh:
        assert_same_training(rank["grouped"], single["grouped"])
        assert_same_training(rank["untied"], single["untied, accumulated"])
        assert_same_training(rank["unbalanced"], single["unbalanced"])


@distributed
@pytest.mark.parametrize(
    ("run", "reference"), [("bf16", "grouped"), ("float8", "grouped"), ("muon", "muon")]
)
def test_rounded_arithmetic_stays_close(
    single: dict[str, Any],
    ranks: list[dict[str, Any]],
    mesh: list[dict[str, Any]],
    run: str,
    reference: str,
) -> None:
    wanted, start = single[reference]["weights"], single[reference]["start"]["weights"]
    for rank in ranks if run == "bf16" else mesh:
        for name, value in wanted.items():
            found = rank[run]["weights"][name]
            assert found.dtype == torch.float32
            assert (found - value).norm() < 0.4 * (value - start[name]).norm(), name


@distributed
def test_checkpoints_cross_layouts_exactly(
    single: dict[str, Any], ranks: list[dict[str, Any]], mesh: list[dict[str, Any]], directory: Path
) -> None:
    for rank in ranks:
        for run in ("split from split", "shards", "replicas"):
            assert_same_state(rank[run]["start"], rank["grouped"]["saved"])
        assert_same_state(rank["split from one"]["start"], single["grouped"]["saved"])
    assert_same_state(mesh[0]["from two"]["start"], ranks[0]["grouped"]["saved"])
    saved = {
        "split.ckpt": ranks[0]["grouped"],
        "file.ckpt": ranks[0]["one file"],
        "mesh.ckpt": mesh[0]["grouped"],
        "experts.ckpt": ranks[0]["experts"],
    }
    for name, run in saved.items():
        resumed = fit(
            check.experts if name == "experts.ckpt" else check.grouped,
            seed=9,
            ckpt_path=directory / name,
            plugins=[AtomicCheckpointIO()],
            max_steps=5,
        )
        assert_same_state(resumed["start"], run["saved"])


@distributed
def test_states_of_muon_cross_layouts_exactly(
    ranks: list[dict[str, Any]], mesh: list[dict[str, Any]], directory: Path
) -> None:
    shards = ranks[0]["muon shards"]["saved"]
    assert any(name.endswith("momentum_buffer") for name in shards["optimizer"])
    for rank in ranks:
        assert_same_state(rank["muon replicas"]["start"], shards)
    assert_same_state(mesh[0]["muon from shards"]["start"], shards)
    for name, saved in (("muon_shards.ckpt", shards), ("muon.ckpt", mesh[0]["muon"]["saved"])):
        one = fit(
            check.with_muon,
            seed=9,
            ckpt_path=directory / name,
            plugins=[AtomicCheckpointIO()],
            max_steps=5,
        )
        assert_same_state(one["start"], saved)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_kv_heads": 1}, "n_kv_heads=1 is no multiple of 2; use n_kv_heads=2"),
        ({"hidden_dim": 33}, "hidden_dim=33 is no multiple of 2"),
        ({"positions": "alibi"}, "positions='alibi' cannot be split"),
        ({"qk_norm_scope": "all_heads"}, "qk_norm_scope='all_heads' cannot be split"),
        ({"attention_score": "cosine", "qk_norm": False}, "attention_score='cosine'"),
    ],
)
def test_what_cannot_be_split_is_named(changed: dict[str, Any], message: str) -> None:
    config: TransformerConfig = replace(check.CONFIG, **changed)
    problems = find_problems(config, 2)
    assert len(problems) == 1
    assert message in problems[0]


def test_whole_layers_can_be_split() -> None:
    assert find_problems(check.CONFIG, 2) == []


def test_module_of_others_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Foreign has \['embedding.weight', .*shards any module"):
        TensorParallel(Foreign(), TWO_RANKS)


def test_sequences_must_divide() -> None:
    split = TensorParallel(check.grouped(), TWO_RANKS)
    with pytest.raises(ValueError, match="15 tokens in a row; make seq_len a multiple of 2"):
        split._to_sequence(torch.nn.Identity(), (torch.zeros(1, 15, 32),))


def test_other_backends_of_the_loss_are_refused() -> None:
    head: Any = torch.zeros(8, 4)
    head.device_mesh = TWO_RANKS
    with pytest.raises(ValueError, match="backend='torch' takes no head whose rows are spread"):
        linear_cross_entropy(torch.zeros(3, 4), head, torch.tensor([1, 2, 3]), backend="torch")


def test_split_loss_has_no_second_derivative() -> None:
    with pretended_ranks(1, 1, 1) as ranks:
        mesh = ranks["tensor_parallel"]
        hidden = torch.randn(3, 4, requires_grad=True)
        head = DTensor.from_local(torch.randn(8, 4, requires_grad=True), mesh, [Shard(0)])
        loss = linear_cross_entropy(hidden, head, torch.tensor([1, 2, 3]))
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, hidden, create_graph=True)


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="tensor_parallel_size=0 must be at least 1"):
        FSDP2Strategy(tensor_parallel_size=0)


def test_torchs_advice_about_two_meshes_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    leave_out_advice()
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    logger.addHandler(caplog.handler)  # torch's loggers may keep records from their parents
    try:
        logger.warning("While redistributing from %s to %s, %d operations", "a", "b", 2)
        logger.warning("something else")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"something else"}
