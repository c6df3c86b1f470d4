"""The charts as PNG files: as many as on the page, in the runs' colours."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import RunReport
from lightning_llm.cli import main
from lightning_llm.reporting import read_run, write_pngs

FIRST, SECOND = (0x42, 0x69, 0xD0), (0xD9, 0x77, 0x06)


def write_losses(directory: Path, losses: list[float]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    rows = ["step,step_seconds,train_loss"]
    rows += [f"{step},60,{loss}" for step, loss in enumerate(losses)]
    (directory / "metrics.csv").write_text("\n".join(rows) + "\n")
    return directory


def pixels(path: Path) -> np.ndarray:
    image = pytest.importorskip("PIL.Image", reason="Pillow draws and reads the pictures")
    with image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def of_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture - np.array(colour)).sum(-1) < 24


def test_command_writes_a_picture_per_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("PIL", reason="Pillow draws the pictures")
    runs = [write_losses(tmp_path / "a", [4, 2, 1]), write_losses(tmp_path / "b", [3, 3, 3])]
    folder = tmp_path / "pictures"
    assert main(["report", *map(str, runs), "--png", str(folder)]) == 0
    files = [folder / f"loss_over_{axis}.png" for axis in ("step", "minutes")]
    assert sorted(folder.iterdir()) == sorted(files)
    assert capsys.readouterr().out.split() == [str(runs[0] / "report.html"), *map(str, files)]
    for file in files:
        picture = pixels(file)
        assert tuple(picture[0, 0]) == (255, 255, 255)
        for colour in (FIRST, SECOND):
            assert of_colour(picture, colour).sum() > 500
        # The second run's loss stays the same: the lower part of the picture has none of it.
        rows = np.flatnonzero(of_colour(picture, SECOND).any(1))
        lower = np.flatnonzero(of_colour(picture, FIRST).any(1)).max()
        assert rows.max() < lower - 100


def test_evaluation_is_dashed_with_gaps(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow draws the pictures")
    flat = [2.0] * 50
    for name, column in (("solid", "train_loss"), ("dashed", "val_loss")):
        (tmp_path / name).mkdir()
        rows = [f"step,{column}", *[f"{step},{loss}" for step, loss in enumerate(flat)]]
        (tmp_path / name / "metrics.csv").write_text("\n".join(rows))
    shares = {}
    for name in ("solid", "dashed"):
        folder = tmp_path / name
        files = write_pngs([read_run(folder)], folder)
        drawn = of_colour(pixels(files[0]), FIRST)
        row = drawn[100:].sum(1).argmax() + 100  # below the key, which has the colour too
        columns = np.flatnonzero(drawn[row])
        shares[name] = drawn[row, columns.min() : columns.max()].mean()
    assert shares["solid"] > 0.99
    assert 0.5 < shares["dashed"] < 0.75  # 6 on, 3 off


@pytest.mark.filterwarnings("ignore:no font here has")
def test_a_single_point_and_a_name_in_any_script(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow draws the pictures")
    run = read_run(write_losses(tmp_path / "实验 é \U0001f600", [2.0]))
    (file, _) = write_pngs([run], tmp_path / "png")
    assert of_colour(pixels(file)[100:], FIRST).sum() > 10


def test_nothing_logged_nothing_drawn(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow draws the pictures")
    (tmp_path / "metrics.csv").write_text("step\n")
    assert write_pngs([read_run(tmp_path)], tmp_path / "png") == []


def test_without_pillow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    run = write_losses(tmp_path / "a", [2.0, 1.0])
    assert main(["report", str(run), "--png", str(tmp_path / "png")]) == 1
    assert "pip install 'lightning-llm[png]'" in capsys.readouterr().err
    assert (run / "report.html").is_file()  # the page needs no Pillow
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-llm\[png\]'"):
        RunReport(png=True)
    RunReport()


class Logged(BoringModel):
    def training_step(self, batch: object, batch_idx: int) -> object:
        out = super().training_step(batch, batch_idx)
        self.log("train_loss", out["loss"])
        return out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_callback_draws_beside_the_page(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow draws the pictures")
    logger = CSVLogger(tmp_path)
    L.Trainer(
        max_steps=3,
        log_every_n_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=logger,
        callbacks=[RunReport(png=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Logged())
    folder = Path(logger.log_dir) / "png"
    assert [file.name for file in folder.iterdir()] == ["loss_over_step.png"]
