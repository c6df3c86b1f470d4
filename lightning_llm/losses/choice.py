"""What ``backend="auto"`` means: on a CUDA device the fastest, by a measurement made once.

The choice never depends on anything that may differ between the ranks of a job, and never makes a
training step wait for the device that would not otherwise: see :func:`choose`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from lightning_llm.losses.backends import BACKENDS, Request, absence, refusal, run_backend

Loss = Callable[[Tensor, Tensor], Tensor]  # (hidden, weight) -> scalar

# Another backend must be faster than the chunked loss by more than a measurement's noise, and one
# that waits for the device in every step by what the empty queue behind it costs.
_GAIN = 1.03
_GAIN_WAITING = 1.10
_REPEATS = 3

_choices: dict[Hashable, str] = {}


def choose(hidden: Tensor, weight: Tensor, labels: Tensor, request: Request, chunked: Loss) -> str:
    """Name of the backend for a call.

    ``"chunked"`` wherever a measurement is impossible or might come out differently elsewhere: off
    CUDA, under ``torch.compile`` and CUDA graph capture, with more than one process, with
    ``torch.use_deterministic_algorithms`` or a CUDA sync debug mode, without gradients, and for
    ``reduction="none"``. Else the first call with a device, dtype, vocabulary, width and set of
    options times every backend that is installed and supports them, and the rest follow it.

    Args:
        hidden: (N, D).
        weight: (V, D).
        labels: (N,) int64.
        request: the call's options.
        chunked: our own loss with the call's options.
    """
    if request.device_type != "cuda" or torch.compiler.is_compiling() or not _may_measure(request):
        return "chunked"
    if not (hidden.requires_grad and weight.requires_grad):
        return "chunked"
    options = tuple(sorted(request.extras.keys() - {"chunk_size"}))
    key = (hidden.device, request.dtype, *weight.shape, options)
    if key not in _choices:
        names = [n for n in BACKENDS if refusal(n, request) is None and absence(n) is None]
        _choices[key] = (
            fastest(hidden, weight, labels, request, chunked, names, cuda_milliseconds)
            if names
            else "chunked"
        )
    return _choices[key]


def backend_choices() -> dict[Hashable, str]:
    """What was chosen so far in this process, by device, dtype, V, D and options."""
    return dict(_choices)


def _may_measure(request: Request) -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (
        request.reduction != "none"
        and torch.is_grad_enabled()
        and not (distributed and torch.distributed.get_world_size() > 1)
        and not torch.are_deterministic_algorithms_enabled()
        and torch.cuda.get_sync_debug_mode() == 0
        and not torch.cuda.is_current_stream_capturing()
    )


def fastest(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    request: Request,
    chunked: Loss,
    names: list[str],
    milliseconds: Callable[[Callable[[], Any]], float],
) -> str:
    """The backend of least time for value and gradients, ``"chunked"`` on a near tie.

    A backend that fails is left out with a warning: it was not asked for by name.

    Args:
        hidden: (N, D).
        weight: (V, D).
        labels: (N,) int64.
        request: the call's options.
        chunked: our own loss with the call's options.
        names: of the other backends to try.
        milliseconds: times a callable.
    """
    leaves = (hidden.detach().requires_grad_(), weight.detach().requires_grad_())

    def gradients(loss: Loss) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss(*leaves), leaves)

    best, best_time = "chunked", milliseconds(gradients(chunked))
    own_time = best_time
    for name in names:

        def other(states: Tensor, head: Tensor, name: str = name) -> Tensor:
            return run_backend(name, states, head, labels, request)

        try:
            time = milliseconds(gradients(other))
        except Exception as error:  # whatever an optional package raises
            warnings.warn(
                f"backend='auto' leaves out {name!r}, which failed: {error}", stacklevel=2
            )
            continue
        gain = _GAIN_WAITING if BACKENDS[name].waits else _GAIN
        if time < best_time and time * gain < own_time:
            best, best_time = name, time
    return best


def cuda_milliseconds(call: Callable[[], Any]) -> float:
    """Least time of a few calls on the current stream, after one that compiles kernels."""
    call()
    times = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)
