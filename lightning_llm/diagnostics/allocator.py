"""Which memory allocator a process uses on the host, and the settings that make glibc's faster."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

# glibc gives large buffers back to the kernel when they are freed, which has to clear every page
# again in the next step. These keep them; read by the C library when a process starts.
GLIBC_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_LIBRARIES = ("tcmalloc", "jemalloc", "mimalloc")
_KEEPING = ("glibc.malloc.mmap_max", "glibc.malloc.trim_threshold", "glibc.malloc.mmap_threshold")


def allocator_in_use(
    environment: Mapping[str, str] | None = None, mapped_files: str | None = None
) -> str | None:
    """Return ``"glibc"``, ``"glibc-tuned"``, the name of a preloaded library, or ``None``.

    Args:
        environment: Variables the process was started with; this process's by default.
        mapped_files: Contents of ``/proc/self/maps``; read from there by default.

    Returns:
        ``None`` where that is not known: on other systems than Linux with glibc.
    """
    environment = os.environ if environment is None else environment
    if mapped_files is None:
        mapped_files = _mapped_files()
    preloaded = environment.get("LD_PRELOAD", "")
    for library in _LIBRARIES:
        if f"lib{library}" in mapped_files or library in preloaded:
            return library
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    tunables = environment.get("GLIBC_TUNABLES", "")
    keeps = "MALLOC_MMAP_MAX_" in environment or "MALLOC_TRIM_THRESHOLD_" in environment
    return "glibc-tuned" if keeps or any(name in tunables for name in _KEEPING) else "glibc"


def settings_for_shell() -> str:
    """Return the settings as they are written before a command."""
    return " ".join(f"{name}={value}" for name, value in GLIBC_SETTINGS.items())


def _mapped_files() -> str:
    try:
        return Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
