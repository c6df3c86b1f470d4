"""Lets ranks share the sequences of a batch: the loss of each is computed on its own positions.

Shapes: B batch, T tokens of a sequence, N ranks that share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lightning_llm.batches import documents_of, inputs_of, targets_of
from lightning_llm.errors import InvalidValueError
from lightning_llm.models import Transformer
from lightning_llm.models.attention import Attention
from lightning_llm.models.context import ContextShard

Loss = Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]


class ContextParallel:
    """Makes ``module.compute_loss(batch)`` the work of several ranks, with the same result.

    All of them give it the same batch and get the same sums. Their gradients are those of their own
    positions, N times as large, for a strategy that averages over ranks.

    Args:
        module: Has ``compute_loss`` and :class:`~lightning_llm.models.Transformer` models.
        mesh: One-dimensional, of the ranks that share sequences.

    Raises:
        ValueError: The module or an option of its architecture cannot be shared.
    """

    def __init__(self, module: Any, mesh: DeviceMesh) -> None:
        self.module, self.mesh = module, mesh
        transformers = [child for child in module.modules() if isinstance(child, Transformer)]
        compute_loss: Loss | None = getattr(module, "compute_loss", None)
        if not transformers or compute_loss is None:
            raise InvalidValueError(
                f"context_parallel_size={mesh.size()} needs a module with compute_loss(batch) on a "
                f"lightning_llm Transformer, such as CausalLM; for {type(module).__name__} use "
                f"context_parallel_size=1"
            )
        if any(model.config.n_experts for model in transformers):
            raise InvalidValueError(
                f"context_parallel_size={mesh.size()}: the routers of n_experts balance whole "
                f"sequences; use context_parallel_size=1"
            )
        self.shard = ContextShard(mesh)
        self._compute_loss = compute_loss
        self._readers: list[Any] = [
            *transformers,
            *(part for part in module.modules() if isinstance(part, Attention)),
        ]
        self._set(self.shard)
        module.compute_loss = self.compute_loss

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As the module's own, of which each rank does its part."""
        nll, tokens = self._compute_loss(self.share_of(batch))
        sums = torch.stack((nll.detach().double(), tokens.double()))
        dist.all_reduce(sums, group=self.mesh.get_group())
        scaled = nll * self.shard.size
        # The value of all positions, the gradient of this rank's.
        total = sums[0].to(nll.dtype) + (scaled - scaled.detach())
        return total, sums[1].to(tokens.dtype)

    def share_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a batch is at this rank's positions; targets are found before it is cut."""
        ids = inputs_of(batch)
        whole = {name: value for name, value in batch.items() if name not in _REPLACED}
        whole |= {"input_ids": ids, "shift_labels": targets_of(batch)}
        documents = documents_of(batch)
        if documents is not None:
            whole["document_ids"] = documents
        return {
            name: self.shard.split(value)
            if isinstance(value, Tensor) and value.shape[:2] == ids.shape
            else value
            for name, value in whole.items()
        }

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, every rank runs the models on its own, on whole sequences."""
        self._set(None)
        try:
            yield
        finally:
            self._set(self.shard)

    def undo(self) -> None:
        """Leave the module as it was."""
        self._set(None)
        vars(self.module).pop("compute_loss", None)

    def _set(self, shard: ContextShard | None) -> None:
        for reader in self._readers:
            reader.context = shard


# Of a batch: what targets and documents were read from.
_REPLACED = frozenset({"labels", "shift_labels", "document_ids", "attention_mask"})
