"""How a run is set up, read from a Trainer and its parts; what is not known is ``None``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_llm.batches import field
from lightning_llm.callbacks._hardware import can_compile, has_fast_bf16
from lightning_llm.diagnostics.allocator import allocator_in_use


@dataclass(frozen=True)
class Setup:
    """How a run is set up.

    Attributes:
        device: Name of the device.
        device_type: ``"cpu"``, ``"cuda"``, ...
        device_memory_bytes: Of one accelerator.
        world_size: Processes.
        precision: Lightning's name of it.
        has_fast_bf16: Whether the device multiplies bfloat16 in hardware.
        strategy: Class name.
        compiles: Whether anything was compiled while the steps ran.
        can_compile: Whether there are blocks to compile, and a compiler.
        activation_checkpointing: The strategy's option.
        optimizer: Class name.
        is_fused: Whether the optimizer updates all parameters in one kernel; ``None`` if it
            has no such form.
        accumulate: Micro-batches of an optimizer step.
        micro_batch_size: Rows of a batch.
        seq_len: Positions of a row.
        vocab_size: Rows of the output embedding.
        num_workers: Processes that load data.
        is_pinned: Whether batches lie in page-locked memory.
        packing: How `TextDataModule` fills rows.
        log_every_n_steps: Optimizer steps from one log point to the next.
        threads: Threads that torch computes with on the host.
        cores: Cores this process may use.
        allocator: Memory allocator of the host.
        detects_anomalies: Whether autograd checks every operation.
        is_deterministic: Whether only deterministic kernels are allowed.
        parameters: Number of weights.
        trainable_parameters: Those with gradients.
    """

    device: str = "cpu"
    device_type: str = "cpu"
    device_memory_bytes: int | None = None
    world_size: int = 1
    precision: str = "32-true"
    has_fast_bf16: bool = False
    strategy: str = "SingleDeviceStrategy"
    compiles: bool = False
    can_compile: bool = False
    activation_checkpointing: str = "none"
    optimizer: str | None = None
    is_fused: bool | None = None
    accumulate: int = 1
    micro_batch_size: int | None = None
    seq_len: int | None = None
    vocab_size: int | None = None
    num_workers: int | None = None
    is_pinned: bool | None = None
    packing: str | None = None
    log_every_n_steps: int = 50
    threads: int = 1
    cores: int = 1
    allocator: str | None = None
    detects_anomalies: bool = False
    is_deterministic: bool = False
    parameters: int = 0
    trainable_parameters: int = 0


def read_setup(trainer: L.Trainer, module: L.LightningModule, batch: Any) -> Setup:
    """Read how a run is set up while it runs.

    Args:
        trainer: A trainer in ``fit``.
        module: What it trains.
        batch: A training batch.
    """
    device = trainer.strategy.root_device
    is_cuda = device.type == "cuda"
    ids = field(batch, "input_ids")
    shape = tuple(ids.shape) if isinstance(ids, Tensor) and ids.ndim == 2 else (None, None)
    blocks = getattr(trainer.strategy, "blocks", None)
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    loader = next(iter(trainer.fit_loop._combined_loader.flattened), None)  # type: ignore[union-attr]
    parameters = list(module.parameters())
    return Setup(
        device=_device_name(device),
        device_type=device.type,
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory
        if is_cuda
        else None,
        world_size=trainer.world_size,
        precision=str(trainer.precision),
        has_fast_bf16=has_fast_bf16(device),
        strategy=type(trainer.strategy).__name__,
        compiles=bool(getattr(blocks, "compile", False)),
        can_compile=can_compile(module, device),
        activation_checkpointing=getattr(blocks, "activation_checkpointing", "none"),
        optimizer=type(optimizer).__name__ if optimizer is not None else None,
        is_fused=_is_fused(optimizer),
        accumulate=trainer.accumulate_grad_batches,
        micro_batch_size=shape[0],
        seq_len=shape[1],
        vocab_size=_vocab_size(module),
        num_workers=getattr(loader, "num_workers", None),
        is_pinned=getattr(loader, "pin_memory", None),
        packing=getattr(getattr(trainer, "datamodule", None), "packing", None),
        log_every_n_steps=trainer.log_every_n_steps,  # type: ignore[attr-defined]
        threads=torch.get_num_threads(),
        cores=_usable_cores(),
        allocator=allocator_in_use(),
        detects_anomalies=torch.is_anomaly_enabled(),
        is_deterministic=torch.are_deterministic_algorithms_enabled(),
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if "model name" in line)
            return next(names, "cpu")
    except OSError:
        return "cpu"


def _is_fused(optimizer: Any) -> bool | None:
    """Whether the optimizer is fused, ``None`` for one that cannot be."""
    inner = getattr(optimizer, "optimizer", optimizer)
    groups: Iterator[dict[str, Any]] = iter(getattr(inner, "param_groups", []))
    forms = [group["fused"] for group in groups if "fused" in group]
    return all(form is True for form in forms) if forms else None


def _vocab_size(module: L.LightningModule) -> int | None:
    config = getattr(module, "config", None) or getattr(
        getattr(module, "model", None), "config", None
    )
    size = getattr(config, "vocab_size", None)
    return size if isinstance(size, int) else None


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
