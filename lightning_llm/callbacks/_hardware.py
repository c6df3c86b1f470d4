"""What the device of a run can do."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def can_compile(module: torch.nn.Module, device: torch.device) -> bool:
    """Whether the strategies of this package can compile the blocks of ``module`` here."""
    from lightning_llm.strategies.blocks import find_blocks

    try:
        find_blocks(module)
    except ValueError:
        return False
    if device.type == "cuda":
        return find_spec("triton") is not None and (
            torch.cuda.get_device_capability(device) >= (7, 0)
        )
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    return device.type == "cpu" and any(shutil.which(name) for name in compilers if name)
