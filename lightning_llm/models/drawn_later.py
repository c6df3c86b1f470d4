"""A network built without weights, which a strategy draws once it knows where they live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_later = ContextVar("weights are drawn later", default=False)
_STATE = "_random_state_of_weights"
_GIVEN = "_weights_are_given_by_first_rank"


@contextmanager
def weights_drawn_later() -> Iterator[None]:
    """Within, :class:`~lightning_llm.CausalLM` builds its network on the meta device.

    Only where nobody else could have touched the weights by the time a strategy draws them: a
    subclass with an ``__init__``, ``build_model``, ``setup`` or ``configure_model`` of its own is
    built as ever.
    """
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


@contextmanager
def building(module: Any, of: type) -> Iterator[None]:
    """Within, ``module`` builds its network, with weights or without.

    Args:
        module: The module under construction.
        of: The class whose hooks are known to leave weights alone.
    """
    if not (_later.get() and _leaves_weights_alone(type(module), of)):
        yield
        return
    setattr(module, _STATE, torch.get_rng_state())
    with torch.device("meta"):
        yield


def _leaves_weights_alone(kind: type, of: type) -> bool:
    hooks = ("__init__", "build_model", "setup", "configure_model")
    return all(getattr(kind, hook) is getattr(of, hook) for hook in hooks)


def left_to_first_rank(kind: type, of: type) -> bool:
    """Whether this process need not read pretrained weights: a strategy hands out the first's.

    Args:
        kind: The class of the module that is built.
        of: The class whose hooks are known to leave weights alone.
    """
    return _later.get() and _leaves_weights_alone(kind, of) and _launched_as() > 0


def leave_to_first_rank(module: Any) -> None:
    """Note that nothing need be drawn for ``module``, which has no weights."""
    setattr(module, _GIVEN, True)


def given_by_first_rank(module: Any) -> bool:
    """Whether the weights of ``module`` were left to the first rank."""
    return getattr(module, _GIVEN, False)


def _launched_as() -> int:
    """The rank that a launcher gave this process; 0 where it gave none, or a node's first."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


@contextmanager
def drawing(module: Any) -> Iterator[None]:
    """Within, weights are drawn as they would have been when ``module`` was built."""
    state = getattr(module, _STATE, None)
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield
