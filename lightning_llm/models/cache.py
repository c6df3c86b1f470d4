"""Keys and values of tokens already seen, for decoding one token at a time.

Shapes: B batch, G key/value heads, S capacity, T new tokens, Dh head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_llm.errors import InvalidValueError
from lightning_llm.models.config import TransformerConfig


class LayerCache:
    """Keys and values of one layer, in memory allocated once.

    Args:
        capacity: S.
        device: Default: that of the first keys.
        dtype: Default: that of the first keys.
    """

    def __init__(
        self, capacity: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        self.capacity = capacity
        self.device = device
        self.dtype = dtype
        self.length = 0
        self._memory: tuple[Tensor, ...] = ()  # keys and values, (B, G, S, Dh) each

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new (B, G, T, Dh) keys and values; returns all of them as views."""
        if not self._memory:
            batch, groups, _, width = keys.shape
            shape = (batch, groups, self.capacity, width)
            device, dtype = self.device or keys.device, self.dtype or keys.dtype
            self._memory = tuple(torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        end = self.length + keys.shape[2]
        all_keys, all_values = self._memory
        all_keys[:, :, self.length : end] = keys
        all_values[:, :, self.length : end] = values
        self.length = end
        return all_keys[:, :, :end], all_values[:, :, :end]

    def reorder(self, index: Tensor) -> None:
        """See :meth:`KVCache.reorder`."""
        memory = []
        for old in self._memory:
            held = old[:, :, : self.length].index_select(0, index)
            same_size = old.shape[0] == index.shape[0]
            new = old if same_size else old.new_empty(index.shape[0], *old.shape[1:])
            new[:, :, : self.length] = held
            memory.append(new)
        self._memory = tuple(memory)


class KVCache:
    """What a Transformer remembers between two calls of ``backbone``.

    Args:
        config: Of the model it is for.
        batch_size: Number of sequences B.
        max_seq_len: Capacity S in tokens. Default: the model's.
        device: Where keys and values live. Default: where the model computes them.
        dtype: Of keys and values. Default: the one the model computes them in.

    Raises:
        ValueError: The capacity exceeds what the model can attend over.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch_size: int,
        max_seq_len: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        capacity = config.max_seq_len if max_seq_len is None else max_seq_len
        if not 0 < capacity <= config.max_seq_len:
            raise InvalidValueError(
                f"max_seq_len={capacity} of the cache must be between 1 and the model's "
                f"max_seq_len={config.max_seq_len}"
            )
        self.batch_size = batch_size
        self.max_seq_len = capacity
        self.layers = [LayerCache(capacity, device, dtype) for _ in range(config.n_layers)]
        self.document_ids: Tensor | None = None  # (B, S) int64, once a call has given some

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return self.layers[-1].length

    def reset(self) -> None:
        """Forgets all tokens; the memory is kept."""
        for layer in self.layers:
            layer.length = 0
        self.document_ids = None

    def reorder(self, index: Tensor) -> None:
        """Replaces sequence ``i`` by sequence ``index[i]``, as beam search asks for.

        Args:
            index: (B',) int64; B' may differ from the batch size.
        """
        for layer in self.layers:
            layer.reorder(index)
        self.batch_size = index.shape[0]
        if self.document_ids is not None:
            self.document_ids = self.document_ids.index_select(0, index)

    def extend_documents(self, document_ids: Tensor | None, length: int) -> Tensor | None:
        """Notes the documents of ``length`` new tokens, before they are stored.

        Args:
            document_ids: (B, T), or None: the new tokens go on with the document of the last
                one held.
            length: T.

        Returns:
            (B, length held + T) document of every key, or None while no call has given any.
        """
        start, end = self.length, self.length + length
        if self.document_ids is None:
            if document_ids is None:
                return None
            shape = (self.batch_size, self.max_seq_len)
            self.document_ids = document_ids.new_zeros(shape)
        if document_ids is None:
            assert start > 0
            document_ids = self.document_ids[:, start - 1 : start]
        self.document_ids[:, start:end] = document_ids
        return self.document_ids[:, :end]
