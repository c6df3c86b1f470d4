"""What a run says where nobody watches: whole lines of plain text, and not many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORDS = "the cat sat on a mat and the dog ran to the red house over green hills".split()


def test_a_run_into_a_file_writes_few_plain_lines(tmp_path: Path) -> None:
    lines = [" ".join(WORDS[(7 * i + 3 * j * j) % 16] for j in range(9)) for i in range(800)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    recipes = ["--config", "recipes/quickstart.yaml", "--config", "recipes/debug.yaml"]
    data = ["--data.init_args.train_files", '["text.txt"]', "--data.init_args.cache_dir", "cache"]
    data += ["--data.init_args.tokenizer.vocab_size", "300"]
    steps = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "10"]
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "lightning_llm.cli", "fit", *recipes, *data, *steps],
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=200,
        )
    text = log.read_bytes().decode()
    assert "\x1b" not in text  # neither colours nor those of an untrained model's samples
    assert "\r" not in text
    shown = text.splitlines()
    steps_shown = [line for line in shown if line.startswith("step ")]
    assert len(steps_shown) == 20  # log_every_n_steps of the overlay is 1
    assert len([line for line in shown if line.startswith("validation at step")]) == 2
    samples = 2 * 4
    assert len(shown) <= len(steps_shown) + 2 + samples + 25
    assert len(set(shown) - {""}) > len(shown) - 6  # nothing is said again and again
