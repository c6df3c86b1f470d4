"""What the command line adds to a recipe, and what it leaves alone."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_llm.callbacks import GarbageCollection, TokenProgressBar
from lightning_llm.cli.safeguards import missing_callbacks, missing_progress_bar


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
