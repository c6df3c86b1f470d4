"""A run owns its folder: what begins, continues or replaces a run, and whose checkpoint it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from ranks import srun
from test_commands import config_of, make_text, recipe

from lightning_llm.callbacks import HFExport, Preemption
from lightning_llm.cli import main
from lightning_llm.cli.resume import checkpoint_to_resume
from lightning_llm.cli.run_folder import RunFolder, folder_of_recipe, folder_of_trainer
from lightning_llm.cli.run_identity import RUN_KEY, RunIdentity
from lightning_llm.plugins import AtomicCheckpointIO

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]

CALLBACKS = "lightning.pytorch.callbacks"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps, whose checkpoints lie outside of the root."""
    folder = tmp_path_factory.mktemp("finished")
    make_text(folder / "text.txt")
    contents = recipe(folder)
    contents["trainer"]["callbacks"][1]["init_args"]["dirpath"] = str(folder / "disk")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(contents))
    assert main(["fit", "--config", config_of(folder)]) == 0
    return folder


def step_in(folder: Path) -> int:
    return int(torch.load(folder / "disk" / "model.ckpt", weights_only=True)["global_step"])


def say(capsys: Any, folder: Path, *arguments: str, status: int = 0) -> str:
    """Run ``fit``; return what it said."""
    capsys.readouterr()
    assert main(["fit", "--config", config_of(folder), *arguments]) == status
    return str(capsys.readouterr().err)


def test_the_same_command_again_is_refused_before_the_data_is_looked_at(
    finished: Path, capsys: Any
) -> None:
    missing = ["--data.init_args.train_files", '["nowhere/*.txt"]']
    said = say(capsys, finished, *missing, status=1)
    assert "model.ckpt (step 4) is of an earlier run" in said
    for way_out in ("--resume auto", "--overwrite", "--trainer.default_root_dir", "and another"):
        assert way_out in said
    assert step_in(finished) == 4


def test_resume_follows_the_folder_of_the_checkpoints_and_takes_another_learning_rate(
    finished: Path, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    folder = moved(finished, tmp_path)
    rate = [
        *("--model.init_args.optimizer", "lightning_llm.optim.AdamW"),
        *("--model.init_args.optimizer.init_args.lr", "1e-4"),
    ]
    more = ["--trainer.max_steps", "6", "--data.init_args.num_workers", "0"]
    said = say(capsys, folder, "--resume", "auto", *more, *rate)
    assert f"resuming from {folder / 'disk' / 'model.ckpt'} (step 4)" in said
    assert step_in(folder) == 6
    assert "not those of the checkpoint: lr 0.0003 -> 0.0001" in caplog.text


def moved(finished: Path, target: Path) -> Path:
    """A copy of the finished run whose recipe writes to the copy."""
    shutil.copytree(finished / "disk", target / "disk")
    text = (finished / "recipe.yaml").read_text()
    for name in ("run", "disk"):
        text = text.replace(str(finished / name), str(target / name))
    (target / "recipe.yaml").write_text(text)
    return target


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--model.init_args.config.dim", "16"], "dim: checkpoint 32, model 16"),
        (["--data.init_args.text_field", "body"], "data text_field: 'text' there, 'body' here"),
        (["--seed_everything", "2"], "seed_everything: 1 there, 2 here"),
    ],
)
def test_a_checkpoint_of_another_experiment_is_never_taken(
    finished: Path, capsys: Any, change: list[str], reason: str
) -> None:
    for option in ("auto", "must"):
        said = say(capsys, finished, "--resume", option, *change, status=1)
        assert reason in said
        assert "--ckpt_path FILE" in said
    assert step_in(finished) == 4


def test_overwrite_replaces_the_run_and_leaves_other_files(
    finished: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = moved(finished, tmp_path)
    shutil.copy(folder / "disk" / "model.ckpt", folder / "disk" / "preempted.ckpt")
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, folder / "disk" / "weights.ckpt")
    (folder / "disk" / "notes.txt").write_text("mine")
    said = say(capsys, folder, "--overwrite", "--trainer.max_steps", "2")
    assert f"--overwrite: removed {folder / 'disk' / 'model.ckpt'}" in said
    assert step_in(folder) == 2
    left = {path.name for path in (folder / "disk").iterdir()}
    assert left == {"model.ckpt", "weights.ckpt", "notes.txt"}
    # The recipe that is kept with the run does not overwrite when it is used again.
    [kept] = (folder / "run").rglob("config.yaml")
    assert yaml.safe_load(kept.read_text())["overwrite"] is False


def test_contradicting_options_are_refused(finished: Path, capsys: Any) -> None:
    model = str(finished / "disk" / "model.ckpt")
    assert "give one of the two" in say(
        capsys, finished, "--overwrite", "--resume", "auto", status=1
    )
    said = say(capsys, finished, "--overwrite", "--ckpt_path", model, status=1)
    assert f"--overwrite would delete --ckpt_path {model} itself" in said
    assert step_in(finished) == 4


def test_a_restarted_job_does_not_overwrite_again(
    finished: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = moved(finished, tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    said = say(capsys, folder, "--overwrite", "--trainer.max_steps", "5")
    assert "overwrites nothing" in said
    assert step_in(folder) == 5


def test_an_address_is_refused_at_the_start(finished: Path, capsys: Any) -> None:
    for address in ("memory://bucket/run", "s3://bucket/run"):
        callbacks = [{"class_path": f"{CALLBACKS}.ModelCheckpoint"}]
        callbacks[0]["init_args"] = {"dirpath": address}  # type: ignore[assignment]
        said = say(capsys, finished, "--trainer.callbacks", json.dumps(callbacks), status=1)
        assert f"checkpoints are to go to {address}" in said
        said = say(capsys, finished, "--trainer.default_root_dir", address, status=1)
        assert f"checkpoints are to go to {address}" in said


# ---------------------------------------------------------------------- which one


STATE = {"state_dict": {"w": torch.ones(3)}, "loops": {}, "optimizer_states": []}


def save(path: Path, step: int, age: int, **changes: Any) -> Path:
    AtomicCheckpointIO().save_checkpoint({**STATE, "global_step": step, **changes}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_step_counts_and_not_the_time_of_the_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, own={tmp_path / "a": False}, files=[tmp_path / "b" / "on.ckpt"])
    save(tmp_path / "a" / "model.ckpt", 100, age=1)
    furthest = save(tmp_path / "a" / "step-120.ckpt", 120, age=50)
    save(tmp_path / "hpc_ckpt_1.ckpt", 80, age=2)
    assert checkpoint_to_resume("auto", None, folder) == str(furthest)
    exception = save(tmp_path / "b" / "on.ckpt", 130, age=90)
    assert checkpoint_to_resume("auto", None, folder) == str(exception)
    # Where the step stands still, the batches go on.
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"total": {"completed": 7}}}}
    later = save(tmp_path / "a" / "later.ckpt", 130, age=99, loops=loops)
    assert checkpoint_to_resume("auto", None, folder) == str(later)


def test_of_several_starts_the_last_one_counts(tmp_path: Path) -> None:
    first, second = ({"id": name, "started": at} for name, at in (("a", 1.0), ("b", 2.0)))
    save(tmp_path / "version_0" / "checkpoints" / "model.ckpt", 100, age=0, **{RUN_KEY: first})
    newer = save(
        tmp_path / "version_1" / "checkpoints" / "model.ckpt", 50, age=9, **{RUN_KEY: second}
    )
    folder = RunFolder(tmp_path, versions=[(tmp_path, "*/checkpoints")])
    assert checkpoint_to_resume("auto", None, folder) == str(newer)


def test_only_damaged_checkpoints_do_not_stop_a_fresh_start(tmp_path: Path, capsys: Any) -> None:
    path = save(tmp_path / "model.ckpt", 5, age=0)
    path.write_bytes(path.read_bytes()[:500])
    folder = RunFolder(tmp_path, own={tmp_path: False})
    identity = RunIdentity(torch.nn.Linear(1, 1), None, {}, None)
    assert checkpoint_to_resume("auto", None, folder, identity) is None
    assert "starting fresh" in capsys.readouterr().err


class Table(pl.LightningModule):
    """A module that knows nothing of this package."""

    def __init__(self, rows: int, layers: int = 1) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(rows, 2) for _ in range(layers))


def test_other_modules_are_known_by_their_weights() -> None:
    saved = {**STATE, "state_dict": Table(3).state_dict()}
    identity = RunIdentity(Table(3), None, {"files": "a"}, 1)
    assert identity.differences(saved) is None
    other = RunIdentity(Table(4), None, {}, 1).differences(saved)
    assert other == "tables.0.weight has the shape (3, 2) there, (4, 2) here"
    deeper = RunIdentity(Table(3, layers=2), None, {}, 1).differences(saved)
    assert deeper == "only the recipe's model has tables.1.weight"


def test_a_checkpoint_of_an_earlier_version_is_known_by_its_data_too(
    finished: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = moved(finished, tmp_path)
    file = folder / "disk" / "model.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint[RUN_KEY]
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    other = ["--data.init_args.text_field", "body"]
    said = say(capsys, folder, "--resume", "auto", *other, status=1)
    assert "data text_field: 'text' there, 'body' here" in said
    assert "resuming from" in say(capsys, folder, "--resume", "auto", "--trainer.max_steps", "5")


def test_what_may_change_between_starts() -> None:
    def identity(**arguments: Any) -> RunIdentity:
        return RunIdentity(Table(3), pl.LightningDataModule(), arguments, None)

    facts = identity(files=["a"], batch_size=2, num_workers=0, val_files="x", val_fraction=0.1)
    saved = {**STATE, "state_dict": Table(3).state_dict(), RUN_KEY: facts.facts}
    same = {"files": ["a"], "val_fraction": 0.1}
    assert identity(**same, batch_size=4, num_workers=8, val_files="y").differences(saved) is None
    assert "val_fraction" in str(identity(files=["a"], val_fraction=0.2).differences(saved))
    moved = identity(files=["b"], val_fraction=0.1)
    assert moved.differences(saved) == "data files: ['a'] there, ['b'] here"
    assert moved.differences(saved, data=False) is None


# ---------------------------------------------------------------------- where


@pytest.mark.parametrize(
    "logger", [None, {"save_dir": "logs"}, {"save_dir": "logs", "name": "n", "version": 3}]
)
@pytest.mark.parametrize("dirpath", [None, "weights"])
def test_the_recipe_and_the_trainer_name_the_same_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: Any, dirpath: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[tuple[type, dict[str, Any]]] = [
        (ModelCheckpoint, {"dirpath": dirpath, "filename": "{val/loss:.2f}"}),
        (OnExceptionCheckpoint, {"dirpath": ".", "filename": "oops"}),
        (HFExport, {"directory": "hf"}),
        (Preemption, {"filename": "stopped.ckpt"}),
    ]
    section = {
        "default_root_dir": str(tmp_path / "root"),
        "callbacks": [
            {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
            for kind, arguments in given
        ],
        "logger": logger
        and {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"name": "lightning_logs", "version": None, **logger},
        },
    }
    if logger is None:
        section["logger"] = False
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path / "root",
        callbacks=[kind(**arguments) for kind, arguments in given],
        logger=CSVLogger(**logger) if logger else False,
    )
    assert folder_of_recipe(section) == folder_of_trainer(trainer)


def test_links_are_the_files_they_point_to(tmp_path: Path) -> None:
    model = save(tmp_path / "model.ckpt", 1, age=0)
    (tmp_path / "last.ckpt").symlink_to(model)
    (tmp_path / "nowhere.ckpt").symlink_to(tmp_path / "gone")
    folder = RunFolder(tmp_path, own={tmp_path: False})
    assert folder.checkpoints() == [model]
    assert len(folder.own_checkpoints()) == 3


def test_an_export_is_not_replaced_either(finished: Path, tmp_path: Path, capsys: Any) -> None:
    folder = moved(finished, tmp_path)
    shutil.rmtree(folder / "disk")
    contents = yaml.safe_load((folder / "recipe.yaml").read_text())
    contents["trainer"]["callbacks"].append(
        {
            "class_path": "lightning_llm.callbacks.HFExport",
            "init_args": {"directory": str(folder / "hf")},
        }
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(contents))
    (folder / "hf").mkdir()
    (folder / "hf" / "model.safetensors").write_bytes(b"x")
    assert "hf holds the export of an earlier run" in say(capsys, folder, status=1)
    said = say(capsys, folder, "--resume", "auto", status=1)
    assert "hf holds an export, but there is no checkpoint to continue from" in said


def test_a_job_of_slurm_does_not_go_on_with_another_run(
    finished: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = moved(finished, tmp_path)
    (folder / "run").mkdir()
    (folder / "disk" / "model.ckpt").rename(folder / "run" / "hpc_ckpt_1.ckpt")
    for name, value in srun(0, 1, 0).items():
        monkeypatch.setenv(name, value)
    said = say(capsys, folder, "--model.init_args.config.dim", "16", status=1)
    assert "hpc_ckpt_1.ckpt is of another run (" in said
    say(capsys, folder, "--trainer.max_steps", "5")  # goes on by itself
    assert step_in(folder) == 5
