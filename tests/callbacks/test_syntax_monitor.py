"""SyntaxMonitor on foreign modules, alone and on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch.loggers import CSVLogger
from ranks import run_on_ranks

from lightning_llm.callbacks import SyntaxMonitor

PROMPTS = ["def f():\n", "x = "]


class Coder(Bigram):
    """Writes Python after every other prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[str], Any]] = []

    def generate(self, prompts: list[str], *, temperature: float, seed: int) -> list[str]:
        self.calls.append((prompts, seed))
        return ["    return 1\n" if prompt.startswith("def") else "= 1\n" for prompt in prompts]


def evaluate(module: Any, monitor: SyntaxMonitor, **options: Any) -> dict[str, float]:
    run = trainer(callbacks=[monitor], **options)
    (result,) = run.validate(module, loader(make_rows(2)), verbose=False)
    return dict(result)


def test_the_share_is_logged_for_validation_and_test(tmp_path: Path) -> None:
    module = Coder()
    monitor = SyntaxMonitor([*PROMPTS, "def g():\n"], samples_per_prompt=2, batch_size=4)
    result = evaluate(module, monitor, logger=CSVLogger(tmp_path))
    assert result["val_syntax_validity"] == pytest.approx(200 / 3)
    assert [len(prompts) for prompts, _ in module.calls] == [4, 2]
    assert module.calls[0][1] != module.calls[1][1]  # two batches do not draw the same
    [path] = tmp_path.rglob("syntax_samples.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["valid"] for row in rows] == ["True", "True", "False", "False", "True", "True"]
    module.test_step = module.validation_step
    (result,) = trainer(callbacks=[monitor]).test(module, loader(make_rows(2)), verbose=False)
    assert result["test_syntax_validity"] == pytest.approx(200 / 3)


def test_not_in_the_sanity_check() -> None:
    module = Coder()
    run = trainer(callbacks=[SyntaxMonitor(PROMPTS)], num_sanity_val_steps=1, max_epochs=1)
    run.fit(module, loader(make_rows(2)), loader(make_rows(2)))
    assert len(module.calls) == 1


def on_two_ranks() -> tuple[float, int]:
    module = Coder()
    result = evaluate(
        module,
        SyntaxMonitor([*PROMPTS, "def g():\n"], samples_per_prompt=1),
        devices=2,
        strategy="ddp",
    )
    return result["val_syntax_validity"], len(module.calls[0][0])


def test_ranks_share_the_prompts(tmp_path: Path) -> None:
    shares = run_on_ranks(on_two_ranks, 2, tmp_path)
    assert [value for value, _ in shares] == pytest.approx([200 / 3] * 2)
    assert sorted(count for _, count in shares) == [1, 2]


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="must be a list of strings"):
        SyntaxMonitor("def ")
    with pytest.raises(ValueError, match="at least one entry"):
        SyntaxMonitor([])
    with pytest.raises(ValueError, match="samples_per_prompt=0 must be at least 1"):
        SyntaxMonitor(PROMPTS, samples_per_prompt=0)
    with pytest.raises(TypeError, match=r"SyntaxMonitor calls generate"):
        evaluate(Bigram(), SyntaxMonitor(PROMPTS))
