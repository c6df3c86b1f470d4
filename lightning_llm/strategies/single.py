"""One device, with compiled and checkpointed blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy as LightningSingleDeviceStrategy
from typing_extensions import override

from lightning_llm.strategies.checkpointing import ActivationCheckpointing
from lightning_llm.strategies.parallelize import BlockOptions


class SingleDeviceStrategy(LightningSingleDeviceStrategy):
    """Lightning's strategy for one device; compiles and checkpoints the model's blocks in place.

    Works with any LightningModule, Hugging Face models included: the blocks are the longest list
    of modules of one class (see :func:`lightning_llm.strategies.blocks.find_blocks`). Names of
    parameters and checkpoints do not change.

    Args:
        device: By default the first device of ``Trainer(accelerator=...)``.
        compile: Compile each block with ``torch.compile(fullgraph=True, dynamic=False)``; a dict
            changes its arguments. The loss of this package is an operator of its own and needs no
            compilation.
        activation_checkpointing: ``"none"``, ``"full"`` or ``"selective"``: less memory for more
            arithmetic, see :class:`lightning_llm.strategies.parallelize.BlockOptions`.
        block_class: Class name of the blocks, or several, where they are not found.
        accelerator: As in Lightning.
        checkpoint_io: As in Lightning.
        precision_plugin: As in Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(strategy=SingleDeviceStrategy(compile=True), accelerator="cpu")
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        *,
        compile: bool | dict[str, Any] = False,
        activation_checkpointing: ActivationCheckpointing = "none",
        block_class: str | Sequence[str] | None = None,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        chosen = torch.device("cpu" if device is None else device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", 0)
        super().__init__(chosen, accelerator, checkpoint_io, precision_plugin)
        self._device_known = device is not None
        self.blocks = BlockOptions(compile, activation_checkpointing, block_class)

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The device, once known. The Trainer reads it, and offers its own where there is none."""
        return [self._root_device] if self._device_known else None

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device]) -> None:
        self._root_device = devices[0]
        self._device_known = True

    @override
    def setup(self, trainer: L.Trainer) -> None:
        assert self.lightning_module is not None
        self.blocks.check_accumulation(trainer.accumulate_grad_batches)
        self.blocks.apply(self.lightning_module)
        super().setup(trainer)

    @override
    def teardown(self) -> None:
        self.blocks.undo()
        super().teardown()
