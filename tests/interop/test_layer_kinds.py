"""Lists with one entry a layer as patterns, and back."""

from __future__ import annotations

import itertools

import pytest

from lightning_llm.interop.hf.layer_kinds import (
    rotations_from_hf,
    rotations_to_hf,
    shortest_pattern,
    windows_from_hf,
    windows_to_hf,
)
from lightning_llm.models import TransformerConfig


@pytest.mark.parametrize(
    ("letters", "pattern"),
    [
        ("SSSS", "S"),
        ("LLLL", "L"),
        ("SLSL", 2),
        ("SSSLSS", 4),
        ("SSSL", 4),
        ("LSLS", "LS"),
        ("LSSS", "LSSS"),
        ("RRRNRRRN", 4),
        ("NRR", "NRR"),
        ("R", "R"),
    ],
)
def test_shortest_pattern(letters: str, pattern: int | str) -> None:
    assert shortest_pattern(letters) == pattern


def test_every_list_of_windows_comes_back() -> None:
    for flags in itertools.product(["full_attention", "sliding_attention"], repeat=5):
        found = windows_from_hf({"layer_types": list(flags), "sliding_window": 3})
        config = TransformerConfig(n_layers=5, **found)
        assert windows_to_hf(config)["layer_types"] == list(flags)


def test_every_list_of_rotations_comes_back() -> None:
    for flags in itertools.product([0, 1], repeat=5):
        if any(flags):
            found = rotations_from_hf({"no_rope_layers": [*flags, 1, 0], "num_hidden_layers": 5})
            config = TransformerConfig(n_layers=5, **found)
            assert rotations_to_hf(config) == {"no_rope_layers": list(flags)}
