"""`FSDP2Strategy` on two and four ranks against one process."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import check_fsdp2
import lightning.pytorch as L
import pytest
import torch
from fsdp2_runs import fit, spawn
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from strategy_models import Foreign
from torch.testing import assert_close

from lightning_llm.cli.checkpoint import load_trained
from lightning_llm.cli.resume import checkpoint_to_resume
from lightning_llm.plugins import AtomicCheckpointIO, MasterWeightsPrecision
from lightning_llm.plugins.io import DamagedCheckpointError
from lightning_llm.plugins.io.sharded import ShardedCheckpoint, read_sharded
from lightning_llm.strategies import FSDP2Strategy

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of torch.distributed and Lightning's data loops
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def single(directory: Path) -> dict[str, Any]:
    plain = fit(save=directory / "one.ckpt", plugins=[AtomicCheckpointIO()])
    return {
        "plain": plain,
        "accumulated": fit(accumulate_grad_batches=3),
        "untied": fit(check_fsdp2.untied),
        "one layer": fit(check_fsdp2.one_layer),
        "muon": fit(check_fsdp2.with_muon),
    }


@pytest.fixture(scope="module")
def ranks(single: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    return spawn(check_fsdp2.training, 2, directory)


def assert_same_training(found: dict[str, Any], wanted: dict[str, Any], atol: float = 1e-6) -> None:
    for part in ("weights", "optimizer"):
        assert found[part].keys() == wanted[part].keys()
        for name, value in wanted[part].items():
            assert_close(found[part][name], value, rtol=0, atol=atol, msg=name)
    assert_close(torch.tensor(found["norms"]), torch.tensor(wanted["norms"]))
    assert found["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-6)


def assert_same_state(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for part in ("weights", "optimizer"):
        assert found[part].keys() == wanted[part].keys()
        for name, value in wanted[part].items():
            assert torch.equal(found[part][name], value), name


@pytest.mark.parametrize(
    ("run", "reference"),
    [
        ("plain", "plain"),
        ("callbacks", "plain"),
        ("accumulated", "accumulated"),
        ("reduced each time", "accumulated"),
        ("untied", "untied"),
        ("one layer", "one layer"),
        ("meta", "plain"),
        ("compiled", "plain"),
        ("one file", "plain"),
    ],
)
def test_ranks_train_like_one_process(
    single: dict[str, Any], ranks: list[dict[str, Any]], run: str, reference: str
) -> None:
    assert len(single[reference]["norms"]) > 2
    for rank in ranks:
        assert_same_training(rank[run], single[reference])


def test_foreign_module_trains_like_replicas(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert_same_training(rank["foreign"], rank["foreign replicas"])


@pytest.mark.parametrize("run", ["bf16", "float8", "muon"])
def test_rounded_arithmetic_stays_close(
    single: dict[str, Any], ranks: list[dict[str, Any]], run: str
) -> None:
    wanted = single.get(run, single["plain"])
    moved = single["plain"]["start"]["weights"]
    for rank in ranks:
        for name, value in wanted["weights"].items():
            assert rank[run]["weights"][name].dtype == torch.float32
            step = (value - moved[name]).norm()
            assert (rank[run]["weights"][name] - value).norm() < 0.4 * step, name


@pytest.mark.parametrize("run", ["from folder", "replicas"])
def test_folder_resumes_exactly(ranks: list[dict[str, Any]], run: str) -> None:
    for rank in ranks:
        assert_same_state(rank[run]["start"], rank["plain"]["saved"])


def test_files_resume_exactly(single: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert_same_state(rank["from one file"]["start"], rank["one file"]["saved"])
        assert_same_state(rank["from one process"]["start"], single["plain"]["saved"])


def test_save_in_a_thread_is_of_its_moment(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert_same_state(rank["in a thread"]["saved"], rank["plain"]["saved"])
        name = "model.embedding.weight"
        moved = rank["in a thread"]["weights"][name]
        assert not torch.equal(moved, rank["plain"]["saved"]["weights"][name])


def test_all_ranks_hear_of_a_save_that_failed(ranks: list[dict[str, Any]], directory: Path) -> None:
    for rank in ranks:
        assert "rank 1 could not save: no space left for __1_0.distcp" in rank["failing"]
    assert not (directory / "failed.ckpt").exists()


@pytest.mark.parametrize("name", ["folder.ckpt", "file.ckpt", "again.ckpt", "late.ckpt"])
def test_one_process_goes_on_from_ranks(
    ranks: list[dict[str, Any]], directory: Path, name: str
) -> None:
    resumed = fit(seed=9, ckpt_path=directory / name, plugins=[AtomicCheckpointIO()], max_steps=5)
    assert_same_state(resumed["start"], ranks[0]["plain"]["saved"])


def test_four_ranks(single: dict[str, Any], ranks: list[dict[str, Any]], directory: Path) -> None:
    for rank in spawn(check_fsdp2.four_ranks, 4, directory):
        assert_same_training(rank["hybrid"], single["plain"])
        assert_same_state(rank["from two"]["start"], ranks[0]["plain"]["saved"])


# ---------------------------------------------------------------------- the folder


def test_nothing_is_left_beside_a_folder(ranks: list[dict[str, Any]], directory: Path) -> None:
    assert [path for path in directory.iterdir() if path.name.startswith(".")] == []


def test_folder_gives_a_module_back(ranks: list[dict[str, Any]], directory: Path) -> None:
    module = load_trained(directory / "folder.ckpt", device="cpu")
    for name, value in ranks[0]["plain"]["saved"]["weights"].items():
        assert torch.equal(module.state_dict()[name], value)


def test_resume_takes_folders_that_are_whole(
    ranks: list[dict[str, Any]], directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(directory / "folder.ckpt", tmp_path / "a.ckpt")
    shutil.copytree(directory / "folder.ckpt", tmp_path / "b.ckpt")
    next((tmp_path / "b.ckpt").glob("*.distcp")).unlink()
    assert checkpoint_to_resume("auto", None, tmp_path) == str((tmp_path / "a.ckpt").resolve())


def test_file_takes_the_place_of_a_folder(
    ranks: list[dict[str, Any]], directory: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(directory / "folder.ckpt", tmp_path / "x.ckpt")
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.ckpt"]


def test_other_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").mkdir()
    (tmp_path / "x.ckpt" / "mine.txt").write_text("kept")
    with pytest.raises(OSError, match="no checkpoint"):
        AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt" / "mine.txt").read_text() == "kept"


def test_altered_shard_is_refused(
    ranks: list[dict[str, Any]], directory: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(directory / "folder.ckpt", tmp_path / "x.ckpt")
    shard = next(folder.glob("*.distcp"))
    contents = bytearray(shard.read_bytes())
    contents[len(contents) // 2] ^= 1
    shard.write_bytes(contents)
    with pytest.raises(DamagedCheckpointError, match="sha256 mismatch"):
        read_sharded(folder)


class Call:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_index_runs_no_code(
    ranks: list[dict[str, Any]], directory: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = shutil.copytree(directory / "folder.ckpt", tmp_path / "x.ckpt")
    size = (folder / ".metadata").stat().st_size
    evil = pickle.dumps(Call())
    (folder / ".metadata").write_bytes(evil + bytes(size - len(evil)))
    with pytest.raises(DamagedCheckpointError, match=r"builtins\.print"):
        ShardedCheckpoint(folder)
    assert "code ran" not in capsys.readouterr().out


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce_dtype": "float16"}, "reduce_dtype='float16'"),
        ({"replicate_size": 0}, "replicate_size=0"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"context_parallel_size": 0}, "context_parallel_size=0 must be at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FSDP2Strategy(**options)


@pytest.mark.parametrize(
    "callback",
    [
        EMAWeightAveraging(),
        WeightAveraging(),
        StochasticWeightAveraging(swa_lrs=0.1),
        ModelPruning("l1_unstructured", amount=0.1),
    ],
)
def test_callbacks_that_need_whole_weights_are_refused(callback: L.Callback) -> None:
    module = Foreign()
    runner = L.Trainer(
        accelerator="cpu", devices=1, strategy=FSDP2Strategy(), callbacks=[callback], logger=False
    )
    runner.strategy.connect(module)
    with pytest.raises(ValueError, match=f"{type(callback).__name__} .* use DDPStrategy"):
        runner.strategy.setup(runner)


def test_what_cannot_be_sharded_is_refused() -> None:
    class Manual(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    strategy = FSDP2Strategy()
    strategy.precision_plugin = MasterWeightsPrecision()
    with pytest.raises(ValueError, match="BF16MixedPrecision"):
        strategy._check(Foreign())
    with pytest.raises(ValueError, match="optimizes manually"):
        FSDP2Strategy()._check(Manual())
