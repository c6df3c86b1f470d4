"""The task datamodules repeat their common arguments, to show them: here they are kept alike."""

from __future__ import annotations

import inspect
import re

import pytest

from lightning_llm.data import ChatDataModule, QADataModule, TranslationDataModule

REFERENCE = ChatDataModule
# What a task says of its own rows.
OWN = {"train_files"}


def described(kind: type) -> dict[str, str]:
    """The text about each argument, by name."""
    arguments = inspect.getdoc(kind).partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


@pytest.mark.parametrize("kind", [QADataModule, TranslationDataModule])
def test_common_arguments_are_alike(kind: type) -> None:
    ours = inspect.signature(kind).parameters
    theirs = inspect.signature(REFERENCE).parameters
    common = [name for name in theirs if name in ours]
    assert len(common) > 20
    assert [name for name in ours if name in theirs] == common  # in the same order
    for name in common:
        assert str(ours[name]) == str(theirs[name])


@pytest.mark.parametrize("kind", [QADataModule, TranslationDataModule])
def test_common_arguments_are_described_alike(kind: type) -> None:
    ours, theirs = described(kind), described(REFERENCE)
    assert ours.keys() == inspect.signature(kind).parameters.keys()
    likewise = {name for name, text in ours.items() if text == "Files that validate, likewise."}
    likewise |= {name for name, text in ours.items() if text == "Files that test, likewise."}
    for name in ours.keys() & theirs.keys() - OWN - likewise:
        assert ours[name] == theirs[name], name
