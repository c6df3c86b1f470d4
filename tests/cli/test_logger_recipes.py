"""Weights & Biases and MLflow chosen by a recipe: Lightning's own loggers on stand-in packages."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning_utilities.core.imports import RequirementCache

from lightning_llm.cli import main

SCALARS = {"train_loss", "val_loss", "val_perplexity", "tokens_per_second", "tokens_seen"}
TEXT = "春天 once upon a time there was a small cat that sat on a mat\n" * 100


def fit(tmp_path: Path, logger: str, **init_args: Any) -> int:
    """Train two steps by a recipe that names a logger."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    callback = "lightning_llm.callbacks."
    prompts = {"prompts": ["once"], "max_new_tokens": 2}
    recipe = {
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "accelerator": "cpu",
            "max_steps": 2,
            "log_every_n_steps": 1,
            "val_check_interval": 2,
            "limit_val_batches": 1,
            "enable_progress_bar": False,
            "logger": {"class_path": f"lightning.pytorch.loggers.{logger}", "init_args": init_args},
            "callbacks": [
                {"class_path": callback + "PerplexityMonitor"},
                {"class_path": callback + "SampleText", "init_args": prompts},
            ],
        },
        "model": {
            "class_path": "lightning_llm.CausalLM",
            "init_args": {"config": {"n_layers": 1, "dim": 16, "n_heads": 2, "max_seq_len": 16}},
        },
        "data": {
            "class_path": "lightning_llm.TextDataModule",
            "init_args": {
                "train_files": [str(tmp_path / "text.txt")],
                "tokenizer": {"algorithm": "byte"},
                "seq_len": 16,
                "micro_batch_size": 4,
                "val_fraction": 0.2,
                "cache_dir": str(tmp_path / "cache"),
            },
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return main(["fit", "--config", str(tmp_path / "recipe.yaml")])


def install(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    """Put modules into ``sys.modules``; ``__`` in a name stands for a dot."""
    for name, contents in modules.items():
        module = ModuleType(name.replace("__", "."))
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)


class WandbRun:
    """Keeps what the client of Weights & Biases would send."""

    name, id = "calm-sea-1", "r1"

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda facts, **_: self.facts.update(facts))

    def log(self, values: dict[str, Any]) -> None:
        self.logged |= values

    def define_metric(self, *names: str, **options: Any) -> None:
        pass


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    run = WandbRun()

    def init(**options: Any) -> WandbRun:
        asked.update(options)
        return run

    def table(**contents: Any) -> dict[str, Any]:
        return contents

    install(
        monkeypatch,
        wandb={"init": init, "run": None, "Table": table},
        wandb__sdk={},
        wandb__sdk__lib={"RunDisabled": type("RunDisabled", (), {})},
        wandb__wandb_run={"Run": WandbRun},
    )
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setenv("WANDB_MODE", "disabled")  # the logger changes it; taken back at the end
    options = {"project": "mine", "offline": True, "save_dir": str(tmp_path / "wandb")}
    assert fit(tmp_path, "WandbLogger", **options) == 0
    assert (asked["project"], asked["dir"]) == ("mine", options["save_dir"])
    assert run.logged.keys() >= SCALARS
    assert run.logged["samples"]["columns"] == ["step", "prompt", "text"]
    [[step, prompt, _]] = run.logged["samples"]["data"]
    assert (step, prompt) == (2, "once")
    assert run.facts["config"]["dim"] == 16
    assert (tmp_path / "wandb" / "config.yaml").is_file()  # the recipe


class MlflowClient:
    """Keeps what a tracking server would."""

    last: MlflowClient

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.metrics: dict[str, float] = {}
        self.params: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.experiments: list[str] = []
        self.status = ""
        MlflowClient.last = self

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.experiments.append(name)
        return "1"

    def create_run(self, experiment_id: str, tags: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_batch(self, run_id: str, params: Any = (), metrics: Any = ()) -> None:
        assert run_id == "r1"
        self.params |= {param.key: param.value for param in params}
        self.metrics |= {metric.key: metric.value for metric in metrics}

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        assert run_id == "r1"
        self.files[artifact_file] = text

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(status="RUNNING"))


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_mlflow_with_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        mlflow={"set_tracking_uri": lambda uri: None},
        mlflow__entities={"Param": SimpleNamespace, "Metric": SimpleNamespace},
        mlflow__tracking={"MlflowClient": MlflowClient, "context": SimpleNamespace()},
    )
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    options = {"experiment_name": "mine", "tracking_uri": "sqlite:///mlflow.db"}
    assert fit(tmp_path, "MLFlowLogger", **options) == 0
    client = MlflowClient.last
    assert (client.uri, client.experiments) == (options["tracking_uri"], ["mine"])
    assert client.metrics.keys() >= SCALARS
    assert client.files.keys() == {"samples/step=2.txt"}
    assert client.files["samples/step=2.txt"].startswith("once")
    assert client.params["config/dim"] == "16"
    assert client.status == "FINISHED"
    # The logger has no folder: the recipe is in the run's.
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 2


@pytest.mark.parametrize(
    ("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")]
)
def test_without_the_package_one_sentence_says_what_to_install(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    logger: str,
    package: str,
) -> None:
    missing = RequirementCache(f"{package}>=1000")
    monkeypatch.setattr(
        f"lightning.pytorch.loggers.{package}._{package.upper()}_AVAILABLE", missing
    )
    assert fit(tmp_path, logger) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"lightning-llm fit: error: Requirement '{package}>=1000' not met")
    assert f"pip install -U '{package}" in last
