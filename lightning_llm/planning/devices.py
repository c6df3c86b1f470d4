"""Accelerators by short name: peak rates, memory, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_llm.callbacks.peak_flops import peak_flops
from lightning_llm.errors import InvalidValueError


@dataclass(frozen=True)
class Device:
    """What a data sheet says of one accelerator and of the usual machine around it.

    Attributes:
        name: Short name, as given to ``plan --device``.
        bf16_flops: Dense FLOP/s of products in bfloat16.
        fp32_flops: The same in float32, without TF32.
        fp8_speedup: Peak of float8 products over that of bfloat16; 1 where there are none.
        memory_bytes: Of one device.
        memory_bandwidth: Bytes/s.
        link_bandwidth: Bytes/s that a device sends to others of its machine.
        network_bandwidth: Bytes/s that a device has of the network between machines.
        per_node: Devices of a machine.
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    fp8_speedup: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    per_node: int = 8


# Name for peak_flops, fp8, GB of memory, GB/s of memory, of links in a machine (one direction:
# NVLink, or PCIe where there is none) and of the network (400, 200 or 100 Gbit/s a device).
_SHEETS: dict[str, tuple[str, float, float, float, float, float]] = {
    "a100": ("A100", 1, 80, 2039, 300, 25),
    "a100_40gb": ("A100", 1, 40, 1555, 300, 25),
    "h100": ("H100", 2, 80, 3350, 450, 50),
    "h100_nvl": ("H100 NVL", 2, 94, 3900, 64, 25),
    "h100_pcie": ("H100 PCIe", 2, 80, 2000, 64, 25),
    "h200": ("H200", 2, 141, 4800, 450, 50),
    "b200": ("B200", 2, 180, 8000, 900, 50),
    "l40s": ("L40S", 2, 48, 864, 32, 12.5),
    "l4": ("L4", 2, 24, 300, 32, 12.5),
    "rtx3090": ("RTX 3090", 1, 24, 936, 32, 12.5),
    "rtx4090": ("RTX 4090", 2, 24, 1008, 32, 12.5),
    "rtx5090": ("RTX 5090", 2, 32, 1792, 64, 12.5),
}
# A processor has no data sheet of this kind: a nominal server of 32 cores.
_CPU = Device("cpu", 3e12, 3e12, 1, 128e9, 200e9, 20e9, 3e9, per_node=1)


def device_names() -> list[str]:
    """Names that :func:`find_device` knows."""
    return [*_SHEETS, "cpu"]


def find_device(name: str) -> Device:
    """The device of a short name such as ``"h100"``.

    Raises:
        ValueError: It is not known; the known ones are listed.
    """
    key = name.lower().replace("-", "_").replace(" ", "_")
    if key == "cpu":
        return _CPU
    if key not in _SHEETS:
        raise InvalidValueError(
            f"device={name!r} is not known; choose one of {', '.join(device_names())}"
        )
    label, fp8, memory, bandwidth, link, network = _SHEETS[key]
    bf16, fp32 = peak_flops(label), peak_flops(label, "fp32")
    assert bf16 is not None
    assert fp32 is not None
    return Device(key, bf16, fp32, fp8, memory * 1e9, bandwidth * 1e9, link * 1e9, network * 1e9)
