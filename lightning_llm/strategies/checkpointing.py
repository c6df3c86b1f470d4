"""Activation checkpointing: what a block keeps for the backward pass, what it computes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

ActivationCheckpointing = Literal["none", "full", "selective"]

# Matrix products: the costly half of a block's arithmetic beside attention. Every second is kept.
_PRODUCTS = (
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "aten.baddbmm",
    "aten._scaled_mm",
    "aten._grouped_mm",
    "lightning_llm.looped_linear",
)
# Attention kernels: their output is small beside their arithmetic, all are kept.
_ATTENTION = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_fused_attention_overrideable",
)


def call_plain(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls a block, hooks included, past whatever ``block(...)`` is redirected to."""
    return block._call_impl(*args, **kwargs)


def call_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls a block without its hooks, past whatever ``block.forward`` is redirected to."""
    return type(block).forward(block, *args, **kwargs)


def checkpointed(
    call: Callable[..., Any], activation_checkpointing: ActivationCheckpointing
) -> Callable[..., Any]:
    """Makes a call of a block keep less for the backward pass.

    ``"full"`` keeps the block's inputs only; the backward pass runs its forward once more.
    ``"selective"`` keeps the outputs of attention and of every second matrix product.
    """
    if activation_checkpointing == "none":
        return call
    options: dict[str, Any] = {"use_reentrant": False}
    if activation_checkpointing == "selective":
        options["context_fn"] = _selective_contexts

    def call_checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(block, *args, **kwargs)
        return checkpoint(call, block, *args, **options, **kwargs)

    return call_checkpointed


def _selective_contexts() -> Any:
    """Contexts of one checkpointed call; the products are counted anew in each.

    The rule of torchtitan (Liang et al. 2024, https://arxiv.org/abs/2410.06511): elementwise
    operations are cheap to repeat, attention is not, and of the matrix products the first, third,
    ... are kept, which halves both their memory and their repetition.
    """
    products, attention = _operators(_PRODUCTS), _operators(_ATTENTION)
    seen = {False: 0, True: 0}  # products so far: in the forward pass, in its repetition

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator in attention:
            return CheckpointPolicy.MUST_SAVE
        if operator in products:
            seen[context.is_recompute] += 1
            if seen[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _operators(names: tuple[str, ...]) -> set[Any]:
    """The default overloads of those operators that this build of torch has."""
    found = set()
    for name in names:
        namespace, _, operator = name.partition(".")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            found.add(packet.default)
    return found
