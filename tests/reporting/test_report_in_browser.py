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


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_drawn(tmp_path: Path, dark: bool) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the screenshot")
    page = tmp_path / "report.html"
    page.write_text(render_report([read_run(write_metrics(tmp_path / "run"))]), encoding="utf-8")
    picture = tmp_path / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1100", *scheme]
    command += [f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with image.open(picture) as screenshot:
        pixels = np.asarray(screenshot.convert("RGB")).astype(int)
    background = pixels[2, 2]
    assert (background.mean() < 64) if dark else (background.mean() > 240)
    drawn = np.abs(pixels - background).sum(-1) > 60
    assert drawn.mean() > 0.005
    line = np.abs(pixels - np.array([0x42, 0x69, 0xD0])).sum(-1) < 24  # the first run's colour
    assert line.sum() > 300
