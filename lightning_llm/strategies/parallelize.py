"""Compiles and checkpoints the blocks of a model in place.

A block stays the module it was, in the same list, with the same parameters: only what
``block(...)`` runs is redirected, by the attribute that ``nn.Module.compile`` uses. So keys of the
state dict do not change, copies and pickles of the module are plain, and undoing leaves no trace.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.strategies.blocks import find_blocks
from lightning_llm.strategies.checkpointing import (
    ActivationCheckpointing,
    call_forward,
    call_plain,
    checkpointed,
)

# One compiled function serves all blocks of a model. Each kind of block (with and without a
# window), training and evaluation, and a smaller last batch need a version of it.
_RECOMPILE_LIMIT = 64
_CUDA_GRAPH_MODES = frozenset({"reduce-overhead", "max-autotune"})


class BlockOptions:
    """What a strategy does to the repeated blocks of the module it is given.

    Args:
        compile: True for ``torch.compile`` with ``fullgraph=True, dynamic=False``; a dict of its
            arguments to change or add some, e.g. ``{"mode": "max-autotune-no-cudagraphs"}``.
        activation_checkpointing: ``"full"`` keeps each block's input only and computes the block
            again in the backward pass: about a third more arithmetic, the least memory.
            ``"selective"`` keeps attention and every second matrix product.
        block_class: Class name of the blocks, or several, where they are not found.

    Raises:
        ValueError: An option is unknown, or the options give wrong gradients together.
        TypeError: ``compile`` is neither bool nor dict.
    """

    def __init__(
        self,
        compile: bool | dict[str, Any] = False,
        activation_checkpointing: ActivationCheckpointing = "none",
        block_class: str | Sequence[str] | None = None,
    ) -> None:
        if activation_checkpointing not in get_args(ActivationCheckpointing):
            raise InvalidValueError(
                f"activation_checkpointing={activation_checkpointing!r} must be one of "
                f"{get_args(ActivationCheckpointing)}"
            )
        self.compile = compile is not False
        self.activation_checkpointing = activation_checkpointing
        self.block_class = block_class
        self.options = _compile_options(compile)
        if self.options.get("backend") == "eager" and activation_checkpointing != "none":
            raise InvalidValueError(
                f"backend='eager' with activation_checkpointing={activation_checkpointing!r} drops "
                f"other units in the repetition than it dropped before; use backend='aot_eager'"
            )
        self._compiled: dict[bool, Callable[..., Any]] = {}
        self._blocks: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    def check_accumulation(self, accumulate_grad_batches: int) -> None:
        """Refuses CUDA graphs where gradients accumulate: they would be silently wrong.

        A graph's gradients live in memory that its next replay overwrites before they are added
        up (github.com/pytorch/pytorch/issues/96693).

        Raises:
            ValueError: Both were asked for.
        """
        inductor = self.options.get("options") or {}
        graphs = self.options.get("mode") in _CUDA_GRAPH_MODES or inductor.get("triton.cudagraphs")
        if graphs and accumulate_grad_batches > 1:
            raise InvalidValueError(
                f"compile={self.options} records CUDA graphs, which give wrong gradients with "
                f"accumulate_grad_batches={accumulate_grad_batches}; use "
                f"mode='max-autotune-no-cudagraphs', or no accumulation"
            )

    def apply(self, module: nn.Module, *, inside_hooks: bool = False) -> None:
        """Redirects the calls of every block; compilation itself happens at the first call.

        Args:
            module: Holds the blocks.
            inside_hooks: Leave the hooks of the blocks out of what is compiled and repeated: those
                of FSDP gather the weights before the block runs.

        Raises:
            ValueError: The module has no repeated blocks that could be found.
        """
        self.undo()
        if not self.compile and self.activation_checkpointing == "none":
            return
        plain = call_forward if inside_hooks else call_plain
        run = checkpointed(plain, self.activation_checkpointing)
        if self.compile:
            # Kept over stages and runs, so that a second fit finds its code compiled.
            if inside_hooks not in self._compiled:
                self._compiled[inside_hooks] = torch.compile(run, **self.options)
            run = self._compiled[inside_hooks]
        self._blocks = find_blocks(module, self.block_class)
        self._handles = _without_needless_caches(module)
        for block in self._blocks:
            redirected = partial(_dispatch, run, plain, block)
            if inside_hooks:
                block.forward = redirected
            else:
                block._compiled_call_impl = redirected

    def undo(self) -> None:
        """Gives every block its plain call back."""
        for block in self._blocks:
            block._compiled_call_impl = None
            block.__dict__.pop("forward", None)
        for handle in self._handles:
            handle.remove()
        self._blocks, self._handles = [], []


def _dispatch(
    run: Callable[..., Any],
    plain: Callable[..., Any],
    block: nn.Module,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Runs a block compiled or checkpointed, unless it decodes with a cache.

    A cache has another length at every token, which would be compiled anew each time, and a
    checkpointed call would add the same tokens twice.
    """
    if _has_cache(args) or _has_cache(kwargs.values()):
        if block.training and torch.is_grad_enabled():
            warnings.warn(
                f"{type(block).__name__} was given a key/value cache in training and runs neither "
                f"compiled nor checkpointed; call the model with use_cache=False",
                stacklevel=2,
            )
        return plain(block, *args, **kwargs)
    return run(block, *args, **kwargs)


def _has_cache(values: Iterable[Any]) -> bool:
    return any(type(value).__name__.endswith("Cache") for value in values)


def _compile_options(compile: bool | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(compile, bool | dict):
        raise InvalidTypeError(f"compile={compile!r} must be True, False or a dict of its options")
    known = set(inspect.signature(torch.compile).parameters) - {"model"}
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    if "isolate_recompiles" in known:  # newer than the oldest torch supported
        options |= {"isolate_recompiles": True, "recompile_limit": _RECOMPILE_LIMIT}
    if isinstance(compile, dict):
        unknown = sorted(set(compile) - known)
        if unknown:
            raise InvalidValueError(
                f"compile has the unknown options {unknown}; torch.compile takes {sorted(known)}"
            )
        options |= compile
    return options


def _without_needless_caches(module: nn.Module) -> list[RemovableHandle]:
    """Makes Hugging Face models leave out the cache that they otherwise fill in every forward.

    Where a call says nothing about ``use_cache`` and brings no cache, nobody can read it.
    ``generate`` says so explicitly and is not affected.
    """

    def hook(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = kwargs.get("past_key_values") is not None or _has_cache(kwargs.values())
        if kwargs.get("use_cache") is None and not given:
            kwargs = kwargs | {"use_cache": False}
        return args, kwargs

    return [
        part.register_forward_pre_hook(hook, with_kwargs=True)
        for part in module.modules()
        if getattr(getattr(part, "config", None), "use_cache", False)
        and "use_cache" in inspect.signature(part.forward).parameters
    ]
