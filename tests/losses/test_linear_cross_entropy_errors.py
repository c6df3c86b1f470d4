"""Every message of the loss, and the argument it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_llm.losses import linear_cross_entropy, linear_cross_entropy_with_nll

HIDDEN, WEIGHT, LABELS = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden": torch.zeros(1, 3, 4)}, ValueError, r"hidden must be \(N, D\), got \(1, 3, 4\)"),
        ({"weight": torch.zeros(5, 3)}, ValueError, r"weight must be \(V, D\) with D=4 .*\(5, 3\)"),
        ({"labels": LABELS[:2]}, ValueError, r"labels must be \(N,\) with N=3 .*got \(2,\)"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \(V,\) with V=5 .*got \(4,\)"),
        ({"labels": LABELS.int()}, TypeError, r"labels must be int64, got torch.int32"),
        ({"hidden": HIDDEN.long()}, TypeError, r"floating point, got torch.int64 and torch.float"),
        (
            {"weight": WEIGHT.bfloat16()},
            TypeError,
            r"hidden is torch.float32 but weight is torch.b",
        ),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing=1.5 must be between 0 and 1"),
        ({"z_loss": -1.0}, ValueError, r"z_loss=-1.0 must not be negative"),
        ({"logit_softcap": 0.0}, ValueError, r"logit_softcap=0.0 must be positive"),
        ({"chunk_size": 0}, ValueError, r"chunk_size=0 must be at least 1"),
    ],
)
def test_messages(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    full = {"hidden": HIDDEN, "weight": WEIGHT, "labels": LABELS} | arguments
    for function in (linear_cross_entropy, linear_cross_entropy_with_nll):
        with pytest.raises(error, match=message):
            function(**full)


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match=r"reduction='avg' must be one of .*'mean'"):
        linear_cross_entropy(HIDDEN, WEIGHT, LABELS, reduction="avg")  # type: ignore[arg-type]


def test_a_label_outside_the_vocabulary_is_an_error_of_the_device() -> None:
    with pytest.raises((IndexError, RuntimeError), match="index 5 is out of bounds"):
        linear_cross_entropy(HIDDEN, WEIGHT, LABELS + 5)
