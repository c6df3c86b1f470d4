"""Where SpeedMonitor finds FLOPs per token and the peak they are measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_llm.callbacks._signature import accepted
from lightning_llm.callbacks.peak_flops import peak_flops

FlopsPerToken = float | Callable[..., float]


class TokenFlops:
    """FLOPs per trained token (forward + backward) at a sequence length, remembered by length.

    Args:
        source: A number, valid for every length, or a function ``f(seq_len)``; one that also
            takes ``causal=True`` gives the causal count.
    """

    def __init__(self, source: FlopsPerToken) -> None:
        self._source = source
        self._known: dict[int, tuple[float, float | None]] = {}

    def at(self, seq_len: int) -> tuple[float, float | None]:
        """``(full, causal)`` FLOPs per token; causal is ``None`` if the source can't tell."""
        if seq_len not in self._known:
            self._known[seq_len] = self._ask(seq_len)
        return self._known[seq_len]

    def _ask(self, seq_len: int) -> tuple[float, float | None]:
        if not callable(self._source):
            return float(self._source), None
        full = float(self._source(seq_len))
        options = accepted(self._source, {"causal": True})
        return full, float(self._source(seq_len, **options)) if options else None


def find_token_flops(given: FlopsPerToken | None, pl_module: LightningModule) -> TokenFlops | None:
    """From the argument, else ``pl_module.flops_per_token``, else that of ``pl_module.model``."""
    if given is not None:
        return TokenFlops(given)
    for owner in (pl_module, getattr(pl_module, "model", None)):
        method = getattr(owner, "flops_per_token", None)
        if callable(method):
            return TokenFlops(method)
    return None


def find_peak(trainer: Trainer) -> float | None:
    """Peak FLOP/s of the device of this rank at the trainer's precision, if known."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device), _matmul_dtype(trainer.precision_plugin))


def _matmul_dtype(precision_plugin: Any) -> str:
    precision = str(getattr(precision_plugin, "precision", "32-true"))
    if not precision.startswith(("32", "64")):
        return "bf16"  # bf16-*, 16-*, transformer-engine (fp8 counts against bf16)
    return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
