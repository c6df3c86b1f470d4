"""What every test starts from and must leave behind: no network, one thread, clean global state."""

from __future__ import annotations

import os

# Before torch and Hugging Face are imported: both read these once. Subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The tensors of the tests are tiny: a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import shutil
import signal
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch

RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "GLOBAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)


def pytest_configure(config: pytest.Config) -> None:
    """Give this run caches of its own: prepared text, the Hub's and those of ``datasets``.

    Here rather than in a fixture: ``huggingface_hub`` reads ``HF_HOME`` when a test module
    imports it, which is before any fixture runs.
    """
    # A shell ignores it for what it starts in the background, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cache = tempfile.mkdtemp(prefix="test-cache-")
    os.environ["XDG_CACHE_HOME"] = cache
    os.environ["HF_HOME"] = os.path.join(cache, "huggingface")
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Restore torch's process-wide switches and the variables that launchers and Lightning set."""
    environment = {name: os.environ.get(name) for name in RANK_VARIABLES}
    dtype = torch.get_default_dtype()
    matmul_precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    grad_enabled = torch.is_grad_enabled()
    threads = torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(matmul_precision)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    torch.set_grad_enabled(grad_enabled)
    torch.set_num_threads(threads)
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    """Close the process group that a Trainer leaves open, so that the next test has none."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
