"""The page of a run as a real browser draws it."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lightning_llm.reporting import read_run, render_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def write_metrics(directory: Path) -> Path:
    directory.mkdir()
    with (directory / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens_seen", "train_loss", "val_loss", "tokens_per_second"])
        for step in range(50):
            loss = 2 + 3 * math.exp(-step / 10)
            evaluated = loss + 0.2 if step % 5 == 0 else ""
            writer.writerow([step, step * 4096, loss, evaluated, 9000 + 100 * (step % 3)])
    row = '{"step": 40, "epoch": 0, "prompt": "Once", "text": " upon a time"}\n'
    (directory / "samples.jsonl").write_text(row)
    return directory


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome")


def screenshot(page: str, folder: Path, *options: str) -> np.ndarray:
    """The page's pixels (height, width, 3), from the top."""
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the screenshot")
    (folder / "report.html").write_text(page, encoding="utf-8")
    picture = folder / "page.png"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1200,1100", *options]
    command += [f"--screenshot={picture}", (folder / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with image.open(picture) as shot:
        return np.asarray(shot.convert("RGB")).astype(int)


def line_pixels(pixels: np.ndarray) -> np.ndarray:
    return np.abs(pixels - np.array([0x42, 0x69, 0xD0])).sum(-1) < 24  # the first run's colour


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_drawn(tmp_path: Path, dark: bool) -> None:
    page = render_report([read_run(write_metrics(tmp_path / "run"))])
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    pixels = screenshot(page, tmp_path, *scheme)
    background = pixels[2, 2]
    assert (background.mean() < 64) if dark else (background.mean() > 240)
    drawn = np.abs(pixels - background).sum(-1) > 60
    assert drawn.mean() > 0.005
    assert line_pixels(pixels).sum() > 300


@needs_browser
def test_the_buttons_exchange_the_charts(tmp_path: Path) -> None:
    """No time passes in this log: over minutes its lines stand upright, over tokens they do not."""
    run = write_metrics(tmp_path / "run")
    head, *lines = (run / "metrics.csv").read_text().splitlines()
    lines = [f"{head},step_seconds", *[f"{line},0" for line in lines]]
    (run / "metrics.csv").write_text("\n".join(lines))
    over_tokens = render_report([read_run(run)])
    over_minutes = over_tokens.replace("id='over-work' checked>", "id='over-work'>")
    over_minutes = over_minutes.replace("id='over-time'>", "id='over-time' checked>")
    widths = []
    for page in (over_tokens, over_minutes):
        left_half = line_pixels(screenshot(page, tmp_path)[150:, :600])
        widths.append(np.flatnonzero(left_half.any(0)).size)
    assert widths[0] > 400
    assert 0 < widths[1] < 40
