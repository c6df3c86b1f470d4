"""A network built without weights, which a strategy draws once it knows where they live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_later = ContextVar("weights are drawn later", default=False)
_STATE = "_random_state_of_weights"


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
    hooks = ("__init__", "build_model", "setup", "configure_model")
    if not _later.get() or any(getattr(type(module), h) is not getattr(of, h) for h in hooks):
        yield
        return
    setattr(module, _STATE, torch.get_rng_state())
    with torch.device("meta"):
        yield


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
