"""The names that torch.cuda.get_device_name gives, and the dense peaks behind them."""

from __future__ import annotations

import pytest
import torch

from lightning_llm.callbacks._flops import _matmul_dtype
from lightning_llm.callbacks.peak_flops import peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA GH200 120GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
    ],
)
def test_bfloat16(name: str, teraflops: float) -> None:
    assert peak_flops(name) == teraflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "Tesla V100-SXM2-16GB",
        "NVIDIA T1000",
        "NVIDIA H1000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "AMD Instinct MI300X",
    ],
)
def test_no_bfloat16_or_unknown(name: str) -> None:
    assert peak_flops(name) is None


def test_other_precisions() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB", "tf32") == 156e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops("Tesla V100-SXM2-16GB", "fp32") == 15.7e12


@pytest.mark.parametrize(
    ("precision", "matmul", "expected"),
    [
        ("bf16-mixed", "highest", "bf16"),
        ("16-true", "highest", "bf16"),
        ("transformer-engine", "highest", "bf16"),
        ("32-true", "highest", "fp32"),
        ("32-true", "high", "tf32"),
    ],
)
def test_the_precision_decides(precision: str, matmul: str, expected: str) -> None:
    torch.set_float32_matmul_precision(matmul)
    plugin = type("Plugin", (), {"precision": precision})()
    assert _matmul_dtype(plugin) == expected
