"""Peak memory of this process: resident memory on a CPU, allocated memory on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """A peak that can be reset.

    On Linux the resident high-water mark of the kernel, which is per process image and can be
    reset; elsewhere the peak of the process's life, which cannot. On CUDA the peak of torch's
    allocator.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def reset(self) -> None:
        """Forget the peak so far, where that is possible."""
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            _CLEAR.write_text("5")
        except OSError:
            return

    def peak(self) -> int:
        """Highest memory in bytes since the reset."""
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return _from_status("VmHWM") or _lifetime_peak()

    def current(self) -> int:
        """Memory held now, in bytes."""
        if self.device == "cuda":
            import torch

            return torch.cuda.memory_allocated()
        return _from_status("VmRSS") or _lifetime_peak()

    def release(self) -> None:
        """Give a GPU's cached blocks back: the next contender has the same device."""
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def _from_status(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _lifetime_peak() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
