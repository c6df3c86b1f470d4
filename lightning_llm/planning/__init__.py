"""Training runs on paper: memory, traffic, time and cost before a device is paid for."""

from lightning_llm.planning.devices import Device, device_names, find_device
from lightning_llm.planning.plan import Plan, make_plan
from lightning_llm.planning.report import as_text
from lightning_llm.planning.run import Numerics, Parallelism, Run

__all__ = [
    "Device",
    "Numerics",
    "Parallelism",
    "Plan",
    "Run",
    "as_text",
    "device_names",
    "find_device",
    "make_plan",
]
