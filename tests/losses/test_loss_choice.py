"""What ``backend="auto"`` chooses, when it measures and when it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_oracle import Problem, problem
from torch import Tensor

from lightning_llm.losses import backends, choice, linear_cross_entropy
from lightning_llm.losses import linear_cross_entropy_reference as plain_loss
from lightning_llm.losses.backends import Request

INPUTS = problem(6, 4, 9, torch.float32)


class _Clock:
    """Tells the times it is given, and runs what it is to time."""

    def __init__(self, *milliseconds: float) -> None:
        self.left = list(milliseconds)

    def __call__(self, call: Callable[[], Any]) -> float:
        call()
        return self.left.pop(0)


def _fake_backend(waits: bool, error: Exception | None = None) -> backends.Backend:
    def run(hidden: Tensor, weight: Tensor, labels: Tensor, request: Request) -> Tensor:
        if error is not None:
            raise error
        return plain_loss(hidden, weight, labels)

    return backends.Backend(run, None, None, frozenset(), None, False, waits)


REQUEST = Request("cpu", torch.float32, "sum", -100, {})


def _fastest(clock: _Clock, names: list[str]) -> str:
    return choice.fastest(
        *INPUTS[:3],
        REQUEST,
        lambda hidden, weight: plain_loss(hidden, weight, INPUTS.labels),
        names,
        clock,
    )


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((10.0, 9.0, 8.0), "waiting"),
        ((10.0, 8.0, 9.0), "quick"),
        ((10.0, 9.0, 9.5), "quick"),
        ((10.0, 9.9, 9.3), "chunked"),  # a near tie, and a gain that waiting would eat up
        ((10.0, 12.0, 11.0), "chunked"),
    ],
)
def test_the_fastest_wins_beyond_a_tie(
    times: tuple[float, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "quick", _fake_backend(waits=False))
    monkeypatch.setitem(backends.BACKENDS, "waiting", _fake_backend(waits=True))
    assert _fastest(_Clock(*times), ["quick", "waiting"]) == expected
    assert INPUTS.weight.grad is None


def test_a_backend_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _fake_backend(waits=False, error=RuntimeError("no kernel image"))
    monkeypatch.setitem(backends.BACKENDS, "broken", broken)
    with pytest.warns(UserWarning, match="leaves out 'broken', which failed: no kernel image"):
        assert _fastest(_Clock(10.0), ["broken"]) == "chunked"


@pytest.fixture
def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A process where ``choose`` may measure; returns the log of measurements."""
    log: list[str] = []

    def fake(*arguments: Any) -> str:
        log.append(",".join(arguments[5]))
        return "quick"

    monkeypatch.setattr(choice, "_choices", {})
    monkeypatch.setattr(choice, "fastest", fake)
    monkeypatch.setattr(choice, "BACKENDS", {"quick": _fake_backend(waits=False)})
    monkeypatch.setitem(backends.BACKENDS, "quick", _fake_backend(waits=False))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return log


def _choose(inputs: Problem = INPUTS, **changes: Any) -> str:
    fields = {"device_type": "cuda", "dtype": torch.float32, "reduction": "sum"}
    fields |= {"ignore_index": -100, "extras": {}} | changes
    return choice.choose(*inputs[:3], Request(**fields), lambda hidden, weight: hidden.sum())


def test_measured_once_per_shape_and_options(pretend_gpu: list[str]) -> None:
    assert [_choose(), _choose(problem(30, 4, 9, torch.float32))] == ["quick", "quick"]
    assert len(pretend_gpu) == 1
    _choose(problem(6, 4, 11, torch.float32))
    assert len(pretend_gpu) == 2
    assert _choose(extras={"z_loss": 0.1}) == "chunked"  # nothing else can: no measurement
    assert len(pretend_gpu) == 2
    assert set(choice.backend_choices().values()) == {"quick", "chunked"}


def test_no_measurement_where_ranks_or_steps_could_differ(
    pretend_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _choose(device_type="cpu") == "chunked"
    assert _choose(reduction="none") == "chunked"
    with torch.no_grad():
        assert _choose() == "chunked"
    for owner, name, value in (
        (torch.compiler, "is_compiling", True),
        (torch, "are_deterministic_algorithms_enabled", True),
        (torch.cuda, "get_sync_debug_mode", 2),
        (torch.cuda, "is_current_stream_capturing", True),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda value=value: value)
            assert _choose() == "chunked"
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        assert _choose() == "chunked"
    assert pretend_gpu == []
    assert _choose() == "quick"


@pytest.mark.gpu
def test_gpu_auto_records_its_choice() -> None:
    inputs = problem(512, 128, 4096, torch.bfloat16)
    on_device = Problem(*(tensor.detach().cuda() for tensor in inputs)).to(torch.bfloat16)
    linear_cross_entropy(*on_device[:3]).backward()
    keys = [key for key in choice.backend_choices() if key[0] == on_device.hidden.device]
    assert keys
