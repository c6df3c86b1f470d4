"""Dense peak FLOP/s of accelerators, the denominator of MFU.

The vendors' data sheets, without the doubling for structured sparsity that some of them print.
Training in fp8 is still measured against the bf16 peak, so that MFU stays comparable.
"""

from __future__ import annotations

from typing import NamedTuple


class Peak(NamedTuple):
    """Dense FLOP/s of one device; ``None`` where the device has no such unit."""

    bf16: float | None  # also fp16, with float32 accumulation
    tf32: float | None
    fp32: float


# The first entry whose words are all in the device name wins, so variants precede their family.
# Names are those of torch.cuda.get_device_name, e.g. "NVIDIA H100 80GB HBM3" (SXM),
# "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090".
_PEAKS: list[tuple[tuple[str, ...], Peak]] = [
    (("gb200",), Peak(2500e12, 1250e12, 80e12)),
    (("b200",), Peak(2250e12, 1125e12, 75e12)),
    (("gh200",), Peak(989.4e12, 494.7e12, 66.9e12)),
    (("h200", "nvl"), Peak(835.5e12, 417.7e12, 60e12)),
    (("h200",), Peak(989.4e12, 494.7e12, 66.9e12)),
    (("h100", "pcie"), Peak(756e12, 378e12, 51.2e12)),
    (("h100", "nvl"), Peak(835e12, 417.5e12, 60e12)),
    (("h100",), Peak(989.4e12, 494.7e12, 66.9e12)),
    (("h800", "pcie"), Peak(756e12, 378e12, 51.2e12)),
    (("h800",), Peak(989.4e12, 494.7e12, 66.9e12)),
    (("h20",), Peak(148e12, 74e12, 44e12)),
    (("a100",), Peak(312e12, 156e12, 19.5e12)),
    (("a800",), Peak(312e12, 156e12, 19.5e12)),
    (("l40s",), Peak(362e12, 183e12, 91.6e12)),
    (("l40",), Peak(181e12, 90.5e12, 90.5e12)),
    (("l4",), Peak(121e12, 60e12, 30.3e12)),
    (("a10g",), Peak(70e12, 35e12, 31.2e12)),
    (("a10",), Peak(125e12, 62.5e12, 31.2e12)),
    (("a40",), Peak(149.7e12, 74.8e12, 37.4e12)),
    (("rtx", "a6000"), Peak(154.8e12, 77.4e12, 38.7e12)),
    (("rtx", "5090"), Peak(209.5e12, 104.8e12, 104.8e12)),
    (("rtx", "4090"), Peak(165.2e12, 82.6e12, 82.6e12)),
    (("rtx", "3090", "ti"), Peak(80e12, 40e12, 40e12)),
    (("rtx", "3090"), Peak(71e12, 35.6e12, 35.6e12)),
    (("v100",), Peak(None, None, 15.7e12)),
]


def peak_flops(device_name: str, dtype: str = "bf16") -> float | None:
    """Dense peak FLOP/s of one device, or ``None`` if it is not known.

    Args:
        device_name: As given by ``torch.cuda.get_device_name``.
        dtype: ``"bf16"`` (also for fp16 and fp8 runs), ``"tf32"`` or ``"fp32"``.
    """
    # A variant with the family's name and fewer units: laptop chips, "RTX 4090 D", MIG slices.
    words = device_name.lower().replace("-", " ").replace("_", " ").split()
    if {"laptop", "d", "mig"} & set(words):
        return None
    for needed, peak in _PEAKS:
        if all(word in words for word in needed):
            return getattr(peak, dtype)
    return None
