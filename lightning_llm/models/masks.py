"""The attention mask that one forward pass shares among its layers.

Shapes: B batch, H heads, T new tokens (queries), S all tokens (keys); the last query sees the
last key.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.positions import alibi_slopes

_CACHED_MASKS = 8  # local and global layers, a few sequence lengths


class MaskBuilder:
    """Builds additive masks (0 or the ALiBi bias where visible, -inf elsewhere).

    Additive and in the dtype attention runs in, rather than boolean, because
    ``scaled_dot_product_attention`` would convert a boolean mask anew in every layer and keep
    every copy for the backward pass.
    """

    def __init__(self, config: TransformerConfig) -> None:
        self.slopes = alibi_slopes(config.n_heads) if config.positions == "alibi" else None
        self._cache: dict[tuple[object, ...], Tensor] = {}

    def __call__(
        self,
        n_queries: int,
        n_keys: int,
        *,
        window: int | None,
        key_documents: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        query_positions: Tensor | None = None,
    ) -> Tensor | None:
        """Returns the mask, or None where plain causal attention is meant.

        Args:
            n_queries: T.
            n_keys: S.
            window: A query sees this many keys, itself included; None: all before it.
            key_documents: (B, S) or None; a query sees keys of its own document only.
            dtype: Of the result.
            device: Of the result.
            query_positions: (T,) int64, where among the keys the queries stand; None: last.

        Returns:
            (B or 1, H or 1, T, S). No row is fully masked: a token sees itself.
        """
        if window is not None and window >= n_keys:
            window = None
        build = partial(self._build, n_queries, n_keys, window, dtype=dtype, device=device)
        if query_positions is not None:
            if key_documents is None and window is None and self.slopes is None:
                return None
            return build(key_documents, query_positions=query_positions)
        if key_documents is None:
            if window is None and self.slopes is None and n_queries in (1, n_keys):
                return None
            if n_queries != n_keys:  # decoding: every length comes once
                return build(None)
            key = (n_keys, window, dtype, device)
            if key not in self._cache:
                if len(self._cache) >= _CACHED_MASKS:
                    self._cache.clear()
                # A mask first built during validation must also serve training.
                with torch.inference_mode(False):
                    self._cache[key] = build(None)
            return self._cache[key]
        return build(key_documents)

    def _build(
        self,
        n_queries: int,
        n_keys: int,
        window: int | None,
        key_documents: Tensor | None,
        *,
        dtype: torch.dtype,
        device: torch.device,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        keys = torch.arange(n_keys, device=device)
        queries = keys[-n_queries:] if query_positions is None else query_positions
        distance = queries[:, None] - keys  # (T, S)
        visible = distance >= 0
        if window is not None:
            visible = visible & (distance < window)
        if key_documents is None:
            visible = visible[None, None]
        else:
            last = query_positions is None
            query_documents = key_documents[:, -n_queries:] if last else key_documents[:, queries]
            same = query_documents[:, :, None] == key_documents[:, None, :]  # (B, T, S)
            visible = (visible & same).unsqueeze(1)
        if self.slopes is None:
            bias = torch.zeros((), dtype=dtype, device=device)
        else:
            slopes = torch.tensor(self.slopes, device=device)
            bias = (-slopes[:, None, None] * distance).to(dtype)  # (H, T, S)
        return torch.where(visible, bias, -torch.inf)
