"""The task datamodules repeat their common arguments, to show them: here they are kept alike."""

from __future__ import annotations

import inspect
import re

import pytest

from lightning_llm import TextDataModule
from lightning_llm.data import ChatDataModule, QADataModule, TranslationDataModule

REFERENCE = ChatDataModule
MODULES = [TextDataModule, ChatDataModule, QADataModule, TranslationDataModule]
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


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("val_fraction", None, "val_fraction=None must be a number; 0 is for no validation split"),
        ("val_fraction", "0.1", "val_fraction='0.1' must be at least 0 and below 1"),
        ("seq_len", None, "seq_len=None must be an integer of at least 1"),
        ("micro_batch_size", 2.5, "micro_batch_size=2.5 must be an integer of at least 1"),
        ("num_workers", "2", "num_workers='2' must be an integer of at least 0"),
    ],
)
def test_values_of_another_type_are_named(
    kind: type, name: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{kind.__name__}: {message}")):
        kind(train_files="never looked at", **{name: value})
