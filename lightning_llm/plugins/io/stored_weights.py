"""The weights of a folder of shards as a mapping that reads them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from typing_extensions import override

from lightning_llm.plugins.io.sharded import ShardedCheckpoint, weight_key


class StoredWeights(Mapping[str, Tensor]):
    """Weights of a part of the module; each look-up reads one whole tensor from the disk.

    Args:
        source: The folder, opened.
        prefix: Of the part, such as ``"model."``; names are without it.

    Attributes:
        shapes: The same tensors on the meta device.
    """

    def __init__(self, source: ShardedCheckpoint, prefix: str) -> None:
        self._source, self._prefix = source, prefix
        self.shapes = {
            name.removeprefix(prefix): torch.empty(
                entry.size, dtype=entry.properties.dtype, device="meta"
            )
            for name, entry in source.weights().items()
            if name.startswith(prefix)
        }

    @override
    def __getitem__(self, name: str) -> Tensor:
        return self._source.read(weight_key(self._prefix + name))

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    @override
    def __len__(self) -> int:
        return len(self.shapes)
