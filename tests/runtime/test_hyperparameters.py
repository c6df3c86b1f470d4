"""Subclasses with arguments of their own train, save and load, whatever they save of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_llm import CausalLM, HFCausalLM, TextDataModule
from lightning_llm.models import TransformerConfig

CONFIG = TransformerConfig(vocab_size=61, max_seq_len=8, n_layers=1, dim=32, n_heads=2)
HF_CONFIG = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}
SPELLINGS: dict[str, tuple[Any, dict[str, Any]] | None] = {
    "all": ((), {}),
    "ignore": ((), {"ignore": ["config", "optimizer"]}),
    "names": (("scale",), {}),
    "unlogged": ((), {"logger": False}),
    "none": None,
}


class Own(CausalLM):
    spelling = SPELLINGS["none"]

    def __init__(self, config: TransformerConfig, scale: float, **options: Any) -> None:
        super().__init__(config, **options)
        self.scale = scale
        self.extra = nn.Linear(config.dim, 2)  # needs the configuration as an object
        if self.spelling is not None:
            args, keywords = self.spelling
            self.save_hyperparameters(*args, **keywords)


class OwnFirst(CausalLM):
    """Saves before its base is built, and makes the configuration itself."""

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        self.save_hyperparameters()
        super().__init__(TransformerConfig(61, max_seq_len=8, n_layers=1, dim=dim, n_heads=2))
        self.scale = scale


class OwnHF(HFCausalLM):
    spelling = SPELLINGS["none"]

    def __init__(self, name_or_path: Any, scale: float = 1.0, **options: Any) -> None:
        super().__init__(name_or_path, **options)
        self.scale = scale
        if self.spelling is not None:
            args, keywords = self.spelling
            self.save_hyperparameters(*args, **keywords)


def fitted(module: Any, folder: Path, data: Any = None) -> Path:
    row = {"input_ids": torch.arange(8), "labels": torch.arange(8)}
    run = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    rows: Any = [row] * 2
    run.fit(module, data or DataLoader(rows, batch_size=2))
    run.save_checkpoint(folder / "model.ckpt")
    torch.load(folder / "model.ckpt", weights_only=True)
    return folder / "model.ckpt"


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [weight.detach() for weight in module.parameters()]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_subclass_of_causal_lm_trains_saves_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.setattr(Own, "spelling", SPELLINGS[spelling])
    module = Own(CONFIG, scale=0.5, optimizer=_sgd, z_loss=0.25)
    path = fitted(module, tmp_path)
    again = Own.load_from_checkpoint(path, weights_only=True)
    assert (again.scale, again.config, again.z_loss) == (0.5, CONFIG, 0.25)
    torch.testing.assert_close(weights(again), weights(module), rtol=0, atol=0)
    assert Own.load_from_checkpoint(path, scale=2.0).scale == 2.0
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        again.load_from_checkpoint(path)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_a_subclass_without_config_loads(tmp_path: Path) -> None:
    again = OwnFirst.load_from_checkpoint(fitted(OwnFirst(dim=16, scale=3.0), tmp_path))
    assert (again.scale, again.config.dim) == (3.0, 16)


@pytest.mark.parametrize("spelling", ["all", "none"])
def test_a_subclass_of_hf_causal_lm_trains_saves_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.setattr(OwnHF, "spelling", SPELLINGS[spelling])
    path = fitted(OwnHF(HF_CONFIG, scale=0.5), tmp_path)
    assert OwnHF.load_from_checkpoint(path).scale == 0.5


class OwnData(TextDataModule):
    spelling = SPELLINGS["none"]

    def __init__(self, train_files: Path, share: float = 1.0, **options: Any) -> None:
        super().__init__(train_files=train_files, **options)
        self.share = share
        if self.spelling is not None:
            args, keywords = self.spelling
            self.save_hyperparameters(*args, **keywords)


@pytest.mark.parametrize("spelling", [{}, {"ignore": ["tokenizer"]}, None])
def test_a_subclass_of_a_datamodule_trains_saves_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: Any
) -> None:
    monkeypatch.setattr(OwnData, "spelling", spelling if spelling is None else ((), spelling))
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat " * 40)
    options: Any = {"seq_len": 8, "micro_batch_size": 2, "tokenizer": {"algorithm": "byte"}}
    data = OwnData(text, share=0.5, cache_dir=tmp_path / "cache", **options)
    config = {"vocab_size": 300, "max_seq_len": 8, "n_layers": 1, "dim": 16, "n_heads": 2}
    path = fitted(CausalLM(config), tmp_path, data)  # type: ignore[arg-type]
    again = OwnData.load_from_checkpoint(path)
    assert (again.share, again.seq_len, again.vocab_size) == (0.5, 8, data.vocab_size)


class Taught(CausalLM):
    """An argument that is no plain data."""

    def __init__(
        self, config: Any, teacher: nn.Module | None = None, ignore: Any = None, save: bool = True
    ) -> None:
        super().__init__(config)
        if save:
            self.save_hyperparameters(ignore=ignore)


def test_arguments_that_are_no_plain_data_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"teacher=Linear.*ignore=\['teacher'\]"):
        Taught(CONFIG, nn.Linear(1, 1))


def test_a_misspelt_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "spelling", (("scael",), {}))
    with pytest.raises(ValueError, match="no argument of that name; it has config, scale"):
        Own(CONFIG, 0.5)


@pytest.mark.parametrize("save", [True, False])
def test_an_argument_left_out_is_asked_for_and_never_its_default(
    tmp_path: Path, save: bool
) -> None:
    teacher = nn.Linear(1, 1)
    path = fitted(Taught(CONFIG, teacher, ignore="teacher", save=save), tmp_path)
    with pytest.raises(TypeError, match=r"does not hold the arguments teacher .*teacher=\.\.\."):
        Taught.load_from_checkpoint(path)
    assert Taught.load_from_checkpoint(path, teacher=teacher).config == CONFIG
    # A default that was left out is the default again.
    assert Taught.load_from_checkpoint(fitted(Taught(CONFIG, save=save), tmp_path)).config == CONFIG


def test_modules_that_hold_a_language_model_keep_their_arguments_to_themselves() -> None:
    class Pair(torch.nn.Module):
        def __init__(self, first: Any, second: int) -> None:
            super().__init__()
            self.inner = CausalLM(first)

    assert "second" not in Pair(CONFIG, 3).inner.hparams
