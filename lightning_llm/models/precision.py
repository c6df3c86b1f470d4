"""The dtype a layer should compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where autocast is on for the device of ``x``, else that of ``x``."""
    device = x.device.type
    # The meta device has no autocast, and asking it whether it is on raises.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
