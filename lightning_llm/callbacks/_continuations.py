"""Continuations of prompts from any module that has a way to make them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_llm.callbacks._signature import accepted
from lightning_llm.errors import InvalidTypeError, InvalidValueError

GenerateFn = Callable[..., list[str]]


def continuations(
    trainer: Trainer,
    pl_module: LightningModule,
    prompts: list[str],
    *,
    generate_fn: GenerateFn | None = None,
    options: dict[str, Any],
    required: dict[str, Any] | None = None,
    seed: int | None = None,
) -> list[str]:
    """One text per prompt, in evaluation mode and the precision of validation.

    Neither the random number generators nor the train/eval modes of the modules are changed.

    Args:
        trainer: The trainer.
        pl_module: The module.
        prompts: What to continue.
        generate_fn: Called as ``generate_fn(pl_module, prompts, **options)`` in place of
            ``pl_module.generate(prompts, **options)``.
        options: Passed on where the signature has a parameter for them.
        required: Passed on in any case.
        seed: Of the global generators during the call.

    Raises:
        TypeError: One text came back, not a list.
        ValueError: Another number of texts came back.
    """
    function: Any = generate_fn or pl_module.generate
    arguments = (pl_module, prompts) if generate_fn is not None else (prompts,)
    modes = [(module, module.training) for module in pl_module.modules()]
    # Sharded weights are gathered, so that ranks may take different numbers of steps.
    whole_weights = getattr(trainer.strategy, "whole_weights", nullcontext)
    pl_module.eval()
    try:
        with (
            isolate_rng(),
            torch.no_grad(),
            whole_weights(),
            trainer.precision_plugin.val_step_context(),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            passed = {**accepted(function, options), **(required or {})}
            given = function(*arguments, **passed)
            texts = given if isinstance(given, str) else list(given)
    finally:
        for module, training in modes:
            module.training = training
    if isinstance(texts, str):
        raise InvalidTypeError(
            f"generate returned one text, {texts[:60]!r}, for a list of {len(prompts)} prompts; "
            "expected a list with one continuation per prompt"
        )
    if len(texts) != len(prompts):
        raise InvalidValueError(
            f"generate returned {len(texts)} texts for {len(prompts)} prompts; "
            "expected one continuation per prompt"
        )
    return texts


def check_can_generate(
    pl_module: LightningModule, generate_fn: GenerateFn | None, callback: str
) -> None:
    """Refuse a module that has no ``generate`` when no ``generate_fn`` takes its place.

    Raises:
        TypeError: Says what to add.
    """
    if generate_fn is None and not callable(getattr(pl_module, "generate", None)):
        raise InvalidTypeError(
            f"{callback} calls generate(prompts, ...) of the module, which "
            f"{type(pl_module).__name__} does not have. Add that method, or pass "
            f"{callback}(generate_fn=...), called as generate_fn(pl_module, prompts, ...)."
        )
