"""A recipe names classes that a run is made of; functions and other classes are never called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_llm.cli import main
from lightning_llm.cli.recipe_kinds import KindError, check_kind, trust
from lightning_llm.language import LanguageModule
from lightning_llm.module import CausalLM


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.mark),)


def functions(folder: Path, mark: Path) -> dict[str, dict[str, Any]]:
    """Return functions and classes of allowed packages, with arguments that leave a mark."""
    (folder / "hubconf.py").write_text(f"import os\nos.mkdir({str(mark)!r})\ndef build(*a): ...\n")
    torch.save(Payload(mark), folder / "evil.pt")
    return {
        "torch.hub.load": {"repo_or_dir": str(folder), "model": "build", "source": "local"},
        "torch.load": {"f": str(folder / "evil.pt"), "weights_only": False},
        "torch.utils.collect_env.run": {"command": f"mkdir {mark}"},
        "torch.save": {"obj": 1, "f": str(mark)},
        "transformers.AutoModelForCausalLM.from_pretrained": {
            "pretrained_model_name_or_path": str(folder),
            "trust_remote_code": True,
        },
        "lightning_llm.CausalLM.load_from_checkpoint": {"checkpoint_path": str(folder / "evil.pt")},
        "torch.distributed.TCPStore": {"host_name": "localhost", "port": 1},
        "torch.multiprocessing.Process": {"target": "torch.hub.load"},
        "transformers.TrainingArguments": {"output_dir": str(mark)},
        "lightning_llm.data.TokenStoreWriter": {"path": str(mark), "vocab_size": 9},
    }


PATHS = [
    "torch.hub.load",
    "torch.load",
    "torch.utils.collect_env.run",
    "torch.save",
    "transformers.AutoModelForCausalLM.from_pretrained",
    "lightning_llm.CausalLM.load_from_checkpoint",
    "torch.distributed.TCPStore",
    "torch.multiprocessing.Process",
    "transformers.TrainingArguments",
    "lightning_llm.data.TokenStoreWriter",
]


def recipe() -> dict[str, Any]:
    config = {"n_heads": 1, "dim": 32, "n_layers": 1, "max_seq_len": 16}
    return {
        "trainer": {"max_steps": 1, "accelerator": "cpu", "callbacks": []},
        "model": {"class_path": "lightning_llm.CausalLM", "init_args": {"config": config}},
        "data": {
            "class_path": "lightning_llm.TextDataModule",
            "init_args": {"train_files": ["x.txt"], "seq_len": 16, "micro_batch_size": 1},
        },
    }


def put(contents: dict[str, Any], place: str, value: Any) -> None:
    lists = {"callbacks", "plugins"}
    if place in ("optimizer", "lr_scheduler"):
        contents["model"]["init_args"][place] = value
    elif place == "hook":
        callback = "lightning.pytorch.callbacks.LambdaCallback"
        init_args = {"on_fit_start": value}
        contents["trainer"]["callbacks"] = [{"class_path": callback, "init_args": init_args}]
    elif place == "lr_lambda":
        schedule = "torch.optim.lr_scheduler.LambdaLR"
        entry = {"class_path": schedule, "init_args": {"lr_lambda": value}}
        contents["model"]["init_args"]["lr_scheduler"] = entry
    elif place == "data":
        contents["data"] = value
    elif place == "model":
        contents["model"] = value
    else:
        contents["trainer"][place] = [value] if place in lists else value


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", ["optimizer", "hook"])
def test_functions_of_allowed_packages_are_not_called(
    path: str, place: str, tmp_path: Path, capsys: Any
) -> None:
    mark = tmp_path / "it-ran"
    contents = recipe()
    init_args = functions(tmp_path, mark)[path]
    put(contents, place, {"class_path": path, "init_args": init_args})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(contents))
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--config", str(tmp_path / "r.yaml")])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert path in error
    # multiprocessing is no allowed package, whichever module shows its classes
    assert "A recipe may not name" in error or "is not allowed" in error
    assert not mark.exists()


@pytest.mark.parametrize(
    "place",
    "lr_scheduler lr_lambda callbacks plugins logger strategy profiler model data".split(),
)
@pytest.mark.parametrize("as_text", [True, False])
def test_no_place_takes_a_function(place: str, as_text: bool, tmp_path: Path, capsys: Any) -> None:
    if place == "profiler" and as_text:
        pytest.skip("a profiler may be a name: the text is not resolved")
    contents = recipe()
    mark = tmp_path / "it-ran"
    init_args = functions(tmp_path, mark)["torch.hub.load"]
    value = (
        "torch.hub.load" if as_text else {"class_path": "torch.hub.load", "init_args": init_args}
    )
    put(contents, place, value)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(contents))
    with pytest.raises(SystemExit) as caught:
        main(["validate", "--config", str(tmp_path / "r.yaml")])
    assert caught.value.code == 2
    assert "torch.hub.load" in capsys.readouterr().err or place == "lr_lambda"
    assert not mark.exists()


def test_what_a_run_is_made_of_is_allowed() -> None:
    import lightning.pytorch as L
    from torch.distributed.fsdp import MixedPrecision

    from lightning_llm import HFCausalLM, TextDataModule
    from lightning_llm.data import TokenizerSpec
    from lightning_llm.models import TransformerConfig

    trust([])
    for found in (
        CausalLM, HFCausalLM, TextDataModule, TokenizerSpec, TransformerConfig, MixedPrecision,
        torch.optim.SGD, torch.optim.lr_scheduler.CosineAnnealingLR, L.callbacks.ModelCheckpoint,
        L.loggers.CSVLogger, L.strategies.DDPStrategy, L.profilers.SimpleProfiler,
        CausalLM.from_pretrained, TransformerConfig.from_preset, torch.float32,
    ):  # fmt: skip
        check_kind("a.path", found)
    for found in (CausalLM.load_from_checkpoint, torch, torch.strided, print, dict):
        with pytest.raises(KindError, match=r"A recipe may not name .*--allow_import a\.path"):
            check_kind("a.path", found)
    trust(["a"])
    check_kind("a.path", print)
    with pytest.raises(KindError, match=r"ab\.path"):
        check_kind("ab.path", print)
    trust([])


@pytest.mark.parametrize(("name", "kind"), [("optimizer", "Optimizer"), ("lr_scheduler", "LRSch")])
def test_a_factory_returns_what_it_is_named_for(name: str, kind: str) -> None:
    config = {"n_layers": 1, "dim": 8, "n_heads": 1, "vocab_size": 5, "max_seq_len": 8}
    module: LanguageModule = CausalLM(config, **{name: lambda _: None})
    with pytest.raises(TypeError, match=rf"{name}=.*<lambda> returned None; it must .*{kind}"):
        module.configure_optimizers()
