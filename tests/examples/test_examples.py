"""Every example runs, with less work, and what it claims is so."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"
TESTED = {
    "callbacks_in_a_foreign_project",
    "loss_alone",
    "own_data",
    "own_loss",
    "own_optimizer",
    "own_token_store",
}


def example(name: str) -> ModuleType:
    """Import an example by its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    left = [path.name for path in tmp_path.iterdir() if path.name not in ("runs", "books")]
    assert not left, f"an example leaves {left} where it was started"


def small_model(cls: Any, **options: Any) -> Any:
    from lightning_llm.models import TransformerConfig

    torch.manual_seed(0)
    return cls(
        TransformerConfig(vocab_size=23, n_layers=1, dim=16, n_heads=2, max_seq_len=8), **options
    )


def test_every_script_is_tested() -> None:
    assert {script.stem for script in SCRIPTS} == TESTED


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_shows_and_how_it_is_run(script: Path) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    assert f"python examples/{script.name} --steps" in docstring
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 150


def test_a_script_runs_from_the_command_line() -> None:
    command = [sys.executable, str(ROOT / "examples" / "loss_alone.py"), "--steps", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "perplexity per byte" in result.stdout


def test_the_focal_loss_has_the_gradient_of_the_formula() -> None:
    module = example("own_loss")
    model = small_model(module.FocalLM, gamma=2.0)
    assert model.hparams["gamma"] == 2.0
    batch = {name: torch.randint(23, (3, 8)) for name in ("input_ids", "shift_labels")}
    batch["shift_labels"][0, 5:] = -100
    nll_sum, num_tokens = model.compute_loss(batch)
    nll_sum.backward()
    weight = next(model.parameters())
    ours, weight.grad = weight.grad, None
    assert num_tokens == 21

    labels = batch["shift_labels"].flatten()
    nll = F.cross_entropy(model.model(batch["input_ids"]).flatten(0, 1), labels, reduction="none")
    (((1 - torch.exp(-nll)) ** 2) * nll).sum().backward()
    torch.testing.assert_close(ours, weight.grad)
    torch.testing.assert_close(nll_sum, nll.sum())
    assert not torch.allclose(
        ours, torch.autograd.grad(model.compute_loss(batch)[0] * 0.9, weight)[0]
    )


def test_the_focal_loss_of_a_fractional_gamma_has_finite_gradients() -> None:
    model = small_model(example("own_loss").FocalLM, gamma=0.5)
    ids = torch.randint(23, (3, 8))
    nll_sum, _ = model.compute_loss({"input_ids": ids, "shift_labels": ids.where(ids > 9, -100)})
    nll_sum.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_own_loss(capsys: pytest.CaptureFixture[str]) -> None:
    perplexity = example("own_loss").main(steps=15)
    assert set(perplexity) == {"plain", "focal"}
    assert all(1 < value < 150 for value in perplexity.values())  # 257 ids
    assert perplexity["plain"] != perplexity["focal"]
    assert "focal: validation perplexity" in capsys.readouterr().out


def test_lion_takes_the_step_of_the_formula() -> None:
    lion = example("own_optimizer").Lion
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = lion([weight], lr=0.1, betas=(0.5, 0.9), weight_decay=0.2)
    w, m = weight.detach().double(), torch.zeros(3, dtype=torch.float64)
    for gradient in ([1.0, -1.0, 0.5], [-0.1, 3.0, -0.001]):
        g = torch.tensor(gradient, dtype=torch.float64)
        w = w - 0.1 * (torch.sign(0.5 * m + 0.5 * g) + 0.2 * w)
        m = 0.9 * m + 0.1 * g
        weight.grad = g.float()
        optimizer.step()
        torch.testing.assert_close(weight.detach().double(), w, atol=1e-6, rtol=0)


def test_own_optimizer() -> None:
    module = example("own_optimizer")
    optimizer = small_model(module.TwoRates).configure_optimizers()
    rates = {group["kind"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"matrix": 3e-4, "embedding": 3e-3, "vector": 3e-4}
    perplexity = module.main(steps=15)
    assert all(1 < value < 150 for value in perplexity.values())


def test_callbacks_in_a_foreign_project(capsys: pytest.CaptureFixture[str]) -> None:
    logged = example("callbacks_in_a_foreign_project").main(steps=15)
    assert logged["val_perplexity"] < 150
    assert logged["tokens_seen"] == 10 * 16 * 128  # at the last log point
    assert "--- samples at step 15 ---" in capsys.readouterr().out


def test_the_foreign_perplexity_is_that_of_all_tokens_together() -> None:
    import lightning.pytorch as L

    from lightning_llm.callbacks import PerplexityMonitor

    foreign = example("callbacks_in_a_foreign_project")
    module = foreign.TheirModule(dim=32)
    file = Path(sysconfig.get_paths()["stdlib"], "abc.py")
    [whole] = foreign.loader([file], batch_size=1000)
    logits = module.eval()(whole["input_ids"])[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1).double(), whole["labels"][:, 1:].flatten())
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[PerplexityMonitor()],
    )
    (result,) = trainer.validate(module, foreign.loader([file], batch_size=7), verbose=False)
    assert result["val_perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-5)


def test_own_data() -> None:
    result = example("own_data").main()
    assert result["perplexity"] < 1.2
    assert result["right"] > 0.9


def test_own_token_store() -> None:
    result = example("own_token_store").main(steps=10)
    assert 1 < result["perplexity"] < 200
    assert result["fill"] > 0.99


def test_loss_alone() -> None:
    assert example("loss_alone").main(steps=40) < 60  # uniform: 256


def test_the_notebook_holds_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 4)
    for cell in notebook["cells"]:
        assert set(cell) >= {"cell_type", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = ModuleType("IPython.display")
    pages: list[str] = []
    display.HTML = pages.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "STEPS = 200" in sources[0]
    sources[0] = sources[0].replace("STEPS = 200", "STEPS = 20")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number}", "exec"), namespace)
    assert "&lt;svg" in pages[0]
    assert (tmp_path / "runs" / "first_steps" / "version_0" / "hf" / "config.json").is_file()
    assert float(namespace["difference"]) < 1e-4
    metrics = namespace["trainer"].callback_metrics
    assert math.exp(metrics["val_loss"]) == pytest.approx(
        float(metrics["val_perplexity"]), rel=1e-5
    )
    assert metrics["val_perplexity"] < 600  # 1024 ids
    assert "def " in capsys.readouterr().out
