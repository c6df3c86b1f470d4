"""The machine a result comes from, and the environment that workers run in."""

from __future__ import annotations

import ctypes.util
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALLOCATORS = ("default", "glibc-tuned", "tcmalloc")
# glibc's malloc keeps freed memory instead of returning it to the kernel, which would have to
# zero every page again at the next step.
_GLIBC_TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_TCMALLOC_NAMES = ("tcmalloc_minimal", "tcmalloc")


def worker_environment(
    allocator: str, threads: int | None, tcmalloc: str | None = None
) -> dict[str, str]:
    """Return the variables that every worker gets, so that nobody has an allocator of its own.

    Args:
        allocator: ``"default"``, ``"glibc-tuned"`` or ``"tcmalloc"``.
        threads: CPU threads; left to the libraries if not given.
        tcmalloc: Path of the library; searched for if not given.

    Raises:
        ValueError: The allocator is unknown, or its library is not installed.
    """
    variables = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    # One device: the Hugging Face Trainer takes all it sees.
    variables["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if threads:
        variables |= {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    if allocator not in ALLOCATORS:
        raise ValueError(f"allocator={allocator!r} must be one of {ALLOCATORS}")
    if allocator == "glibc-tuned":
        variables |= _GLIBC_TUNED
    if allocator == "tcmalloc":
        found = tcmalloc or next(filter(None, map(ctypes.util.find_library, _TCMALLOC_NAMES)), None)
        if found is None:
            raise ValueError(
                "allocator='tcmalloc': the library is not installed; on Debian and Ubuntu "
                "apt-get install libtcmalloc-minimal4, or name the file with --tcmalloc"
            )
        variables["LD_PRELOAD"] = found
    return variables


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to judge a number: processors, memory, load, Python, commit."""
    description: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }
    return {key: value for key, value in description.items() if value is not None}


def describe_gpu() -> dict[str, Any]:
    """Return name, power limit in watts and driver of the GPU in use, as its driver has them."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    fields = "name,power.limit,driver_version,memory.total"
    answer = _output(
        "nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={device}"
    )
    if answer is None:
        return {}
    name, power, driver, memory = (part.strip() for part in answer.splitlines()[0].split(","))
    return {"gpu": name, "power_limit_w": power, "driver": driver, "gpu_memory_mib": memory}


def busy_cores(seconds: float = 2.0) -> float | None:
    """Measure how many cores other processes keep busy, over so many seconds (Linux)."""
    before = _busy_ticks()
    if before is None:
        return None
    time.sleep(seconds)
    after = _busy_ticks()
    assert after is not None
    return round((after - before) / os.sysconf("SC_CLK_TCK") / seconds, 2)


def _busy_ticks() -> int | None:
    """Clock ticks in which a core did something, of all cores since the start."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(
        int, path.read_text().splitlines()[0].split()[1:]
    )
    return user + nice + system + irq + softirq


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages * size / 1e9, 1)


def _commit() -> str | None:
    """Short hash of the checkout, with ``+`` if the code differs from it."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    if commit is None:
        return None
    code = ("lightning_llm", "benchmarks/*.py", "benchmarks/contenders")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", *code)
    return commit.strip() + ("+" if changed else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
