"""What the command line adds to a recipe, and what it leaves alone."""

from __future__ import annotations

import logging
from importlib.machinery import ModuleSpec

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from lightning_llm.callbacks import GarbageCollection, TokenProgressBar
from lightning_llm.cli import safeguards
from lightning_llm.cli.recipe import restrict_imports
from lightning_llm.cli.safeguards import (
    missing_callbacks,
    missing_logger,
    missing_progress_bar,
    silence_advice,
    without_logger,
)
from lightning_llm.plugins import SaveWatcher


def test_the_collector_is_on_a_schedule_unless_the_recipe_has_its_own() -> None:
    assert any(isinstance(callback, GarbageCollection) for callback in missing_callbacks([]))
    added = missing_callbacks([GarbageCollection(every_n_steps=7)])
    assert added
    assert not any(isinstance(callback, GarbageCollection) for callback in added)


@pytest.mark.parametrize("enabled", [None, True])
def test_the_bar_is_made_for_tokens(enabled: bool | None) -> None:
    (bar,) = missing_progress_bar([GarbageCollection()], enabled)
    assert isinstance(bar, TokenProgressBar)
    assert missing_progress_bar([TQDMProgressBar()], enabled) == []


def test_no_bar_where_the_recipe_wants_none() -> None:
    assert missing_progress_bar([], enabled=False) == []


@pytest.mark.parametrize("asked", [None, True])
def test_without_tensorboard_the_fallback_is_taken_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path, asked: bool | None
) -> None:
    monkeypatch.setattr(safeguards, "find_spec", lambda name: None)
    logger = missing_logger({"logger": asked, "default_root_dir": str(tmp_path)})
    assert isinstance(logger, CSVLogger)
    assert logger.save_dir == str(tmp_path)
    assert missing_logger({"logger": False}) is None
    assert missing_logger({"logger": CSVLogger(tmp_path)}) is None
    assert missing_logger({"logger": None, "barebones": True}) is None
    monkeypatch.setattr(safeguards, "find_spec", lambda name: ModuleSpec(name, None))
    assert missing_logger({"logger": asked}) is None


def test_advertisements_are_left_out_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    silence_advice()
    silence_advice()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.info("💡 Tip: For seamless cloud logging and experiment tracking, try ...")
        logger.info("GPU available: False, used: False")
    assert caplog.messages == ["GPU available: False, used: False"]
    assert logger.filters.count(safeguards._is_no_advertisement) == 1


def test_what_one_command_allows_the_next_does_not() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--kind", type=type)

    def is_allowed(path: str) -> bool:
        try:
            parser.parse_args([f"--kind={path}"])
        except ArgumentError:
            return False
        return True

    restrict_imports(["fractions"])
    assert is_allowed("fractions.Fraction")
    restrict_imports([])
    assert not is_allowed("fractions.Fraction")
    assert is_allowed("torch.nn.Linear")
    restrict_imports(["decimal.Decimal", "torch.nn"])
    restrict_imports(["decimal"])
    assert is_allowed("decimal.Decimal")
    assert is_allowed("torch.nn.Linear")
    restrict_imports([])
    assert not is_allowed("decimal.Decimal")


def test_what_needs_a_logger_is_left_out_where_there_is_none() -> None:
    monitor, watcher = LearningRateMonitor(), SaveWatcher()
    assert without_logger([monitor, watcher]) == [watcher]
