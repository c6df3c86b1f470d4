"""Canaries: the private names of torch on which the package stands are still there."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from lightning_llm.runtime.torch_api import is_schedule_of_torch, parts_of_schedule

CLOSED = [
    *(schedules.StepLR, schedules.MultiStepLR, schedules.ExponentialLR, schedules.ConstantLR),
    *(schedules.LinearLR, schedules.PolynomialLR, schedules.CosineAnnealingLR),
]


@pytest.mark.parametrize("kind", CLOSED)
def test_a_schedule_with_a_formula_has_this_method(kind: type) -> None:
    assert list(inspect.signature(kind._get_closed_form_lr).parameters) == ["self"]  # type: ignore[attr-defined]


def test_a_sequence_has_its_parts_and_borders_here() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    parts = [schedules.ConstantLR(optimizer), schedules.ConstantLR(optimizer)]
    sequence = schedules.SequentialLR(optimizer, parts, milestones=[3])  # type: ignore[arg-type]
    assert parts_of_schedule(sequence) == parts
    assert sequence._milestones == [3]
    assert is_schedule_of_torch(sequence)
