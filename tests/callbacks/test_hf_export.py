"""HFExport on foreign modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import HFExport


class Exporting(Bigram):
    def save_pretrained(self, directory: Path) -> None:
        (Path(directory) / "step").write_text(str(self.trainer.global_step))


def fit(module: Any, export: HFExport, **options: Any) -> None:
    trainer(callbacks=[export], **options).fit(module, loader(make_rows(3)))


def test_the_end_of_fit_exports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(Exporting(), HFExport(tmp_path / "new" / "export"))
    assert (tmp_path / "new" / "export" / "step").read_text() == "3"
    assert f"Exported the model to {tmp_path / 'new' / 'export'}" in caplog.text


def test_without_a_directory_it_goes_to_the_log_or_the_root(tmp_path: Path) -> None:
    fit(Exporting(), HFExport(), logger=CSVLogger(tmp_path))
    assert (tmp_path / "lightning_logs/version_0/hf/step").exists()
    fit(Exporting(), HFExport(), default_root_dir=tmp_path)
    assert (tmp_path / "hf_export/step").exists()


def test_export_fn_takes_the_place_of_the_method(tmp_path: Path) -> None:
    seen = []
    module = Bigram()
    fit(module, HFExport(tmp_path, export_fn=lambda *args: seen.append(args)))
    assert seen == [(module, tmp_path)]


def test_a_tokenizer_is_written_beside_the_model(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, directory: Path) -> None:
            (directory / "tokenizer").touch()

    fit(Exporting(), HFExport(tmp_path, tokenizer=Tokenizer()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step", "tokenizer"]


def test_a_failed_run_exports_nothing(tmp_path: Path) -> None:
    class Fails(Exporting):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fit(Fails(), HFExport(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_debug_run_exports_nothing(tmp_path: Path) -> None:
    fit(Exporting(), HFExport(tmp_path), fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def test_a_module_that_cannot_export_is_named_before_training(tmp_path: Path) -> None:
    class Untrained(Bigram):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("a step was taken")

    with pytest.raises(TypeError, match=r"Bigram|Untrained does not have.*export_fn"):
        fit(Untrained(), HFExport(tmp_path))


def test_a_directory_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"HFExport cannot write to directory='.*file/export'"):
        fit(Exporting(), HFExport(tmp_path / "file" / "export"))
