"""Data-parallel replicas, with compiled and checkpointed blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from typing_extensions import override

from lightning_llm.strategies.checkpointing import ActivationCheckpointing
from lightning_llm.strategies.parallelize import BlockOptions


class DDPStrategy(LightningDDPStrategy):
    """Lightning's DDP strategy; compiles and checkpoints the model's blocks in place.

    Blocks are compiled one by one, so that each hands its gradients to DDP while the one before
    it still computes.

    Args:
        compile: See :class:`~lightning_llm.strategies.SingleDeviceStrategy`.
        activation_checkpointing: As above.
        block_class: As above.
        gradient_as_bucket_view: Gradients live in the buckets they are reduced in, which saves a
            copy of them.
        **kwargs: What Lightning's ``DDPStrategy`` and ``DistributedDataParallel`` take.
    """

    def __init__(
        self,
        *,
        compile: bool | dict[str, Any] = False,
        activation_checkpointing: ActivationCheckpointing = "none",
        block_class: str | Sequence[str] | None = None,
        gradient_as_bucket_view: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(gradient_as_bucket_view=gradient_as_bucket_view, **kwargs)
        self.blocks = BlockOptions(compile, activation_checkpointing, block_class)
        self._split_graphs: Any = None

    @override
    def setup(self, trainer: L.Trainer) -> None:
        assert self.lightning_module is not None
        self.blocks.check_accumulation(trainer.accumulate_grad_batches)
        self.blocks.apply(self.lightning_module)
        if self.blocks.compile:
            self._split_at_buckets(False)
        super().setup(trainer)

    @override
    def teardown(self) -> None:
        self.blocks.undo()
        if self._split_graphs is not None:
            self._split_at_buckets(self._split_graphs)
            self._split_graphs = None
        super().teardown()

    def _split_at_buckets(self, value: Any) -> None:
        """Sets whether the compiler cuts graphs at DDP's buckets.

        It does so by default, for whole models as one graph; blocks are cut already, and a graph
        with activation checkpointing cannot be.
        """
        import torch._dynamo.config as config

        if self._split_graphs is None:
            self._split_graphs = config.optimize_ddp
        config.optimize_ddp = value
