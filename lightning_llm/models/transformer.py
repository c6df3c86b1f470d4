"""A decoder-only Transformer as a plain ``nn.Module``.

Shapes: B batch, T sequence, D model width, V vocabulary, S all tokens (with cached ones).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_llm.errors import InvalidValueError
from lightning_llm.models.block import Block
from lightning_llm.models.cache import KVCache
from lightning_llm.models.config import TransformerConfig
from lightning_llm.models.context import ContextShard
from lightning_llm.models.flops import flops_by_part, flops_per_token
from lightning_llm.models.linear import Embedding, Linear, project
from lightning_llm.models.masks import MaskBuilder
from lightning_llm.models.norms import build_norm
from lightning_llm.models.positions import (
    PositionTable,
    rotary_tables,
    sinusoidal_embedding,
    sinusoidal_table,
)
from lightning_llm.models.precision import compute_dtype


class Transformer(nn.Module):
    """Token ids to hidden states to logits.

    ``with torch.device("meta")`` gives the shapes alone; ``to_empty(device=...)`` and
    ``reset_parameters()`` then give the weights that direct construction gives under the same
    seed.

    Args:
        config: The architecture.
    """

    context: ContextShard | None = None  # where ranks share the sequences

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # so that weights are drawn once, in reset_parameters
            self._build(config)
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters()
        self._router_losses: list[Tensor] = []
        self._masks = MaskBuilder(config)
        self._rotary = rotary_tables(config)
        self._sinusoidal = sinusoidal_table(config) if config.positions == "sinusoidal" else None

    def _build(self, config: TransformerConfig) -> None:
        std = config.init_std
        self.embedding = Embedding(
            config.vocab_size, config.dim, init_std=std, tied=config.tie_embeddings
        )
        self.position_embedding: Embedding | None = None
        if config.positions == "learned":
            self.position_embedding = Embedding(config.max_seq_len, config.dim, init_std=std)
        self.value_embeddings = _value_embeddings(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = build_norm(config)
        self.head: Linear | None = None
        if not config.tie_embeddings:
            self.head = Linear(config.dim, config.vocab_size, bias=False, init_std=std)

    def reset_parameters(self) -> None:
        """Draws all weights anew, in the order of ``modules()``."""
        for module in self.modules():
            if module is not self and any(True for _ in module.parameters(recurse=False)):
                module.reset_parameters()  # type: ignore[operator]

    def __getstate__(self) -> dict[str, Any]:
        # The losses belong to the last step's graph, which copies and pickles cannot hold.
        return {**self.__dict__, "_router_losses": []}

    def backbone(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids: (B, T) int64; with a cache, the new tokens only.
            position_ids: (B, T) int64. Default: 0, 1, ... (from ``cache.length`` on).
            document_ids: (B, T) int64; attention never crosses from one to another. Padding is
                a document of its own, for example -1. Default: one document, or with a cache
                that of the last token held.
            cache: Keys and values of earlier tokens; the new ones are added to it.

        Returns:
            (B, T, D).

        Raises:
            ValueError: More tokens than the model or the cache can hold, or a cache of another
                batch size.
        """
        length = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        n_keys, places = start + length, None
        if self.context is not None:
            n_keys = length * self.context.size
            self.context.prepare(n_keys)
            places = self.context.positions(length, input_ids.device)
            position_ids = places[None] if position_ids is None else position_ids
            if document_ids is not None:
                document_ids = self.context.gather(document_ids, 1)
        self._check_sizes(input_ids.shape[0], n_keys - start, cache)
        if cache is not None:
            document_ids = cache.extend_documents(document_ids, length)
        hidden = self._embed(input_ids, position_ids, start)
        # An object of its own, because a call with one tensor given twice compiles to other code.
        first = hidden.view_as(hidden) if self.config.residual_scalars else None
        rotations = {
            name: _rotation(table, hidden, position_ids, start)
            for name, table in self._rotary.items()
        }
        masks: dict[int | None, Tensor | None] = {}
        router_losses: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            window = self.config.layer_window(layer)
            if window not in masks:
                masks[window] = self._masks(
                    length,
                    n_keys,
                    window=window,
                    key_documents=document_ids,
                    dtype=compute_dtype(hidden),
                    device=hidden.device,
                    query_positions=places,
                )
            rotation = self.config.layer_rotation(layer)
            cos, sin = (None, None) if rotation is None else rotations[rotation]
            layer_cache = None if cache is None else cache.layers[layer]
            token_values = self._token_values(layer, input_ids)
            hidden, router_loss = block(
                hidden, cos, sin, masks[window], layer_cache, first, token_values
            )
            if router_loss is not None:
                router_losses.append(router_loss)
        self._router_losses = router_losses if self.training else []
        return self.final_norm(hidden)

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V), soft-capped where the config says so; arguments as ``backbone``."""
        hidden = self.backbone(
            input_ids, position_ids=position_ids, document_ids=document_ids, cache=cache
        )
        head = self.head
        logits = project(hidden, self.embedding.weight) if head is None else head(hidden)
        cap = self.config.logit_softcap
        if cap is not None:
            logits = (cap * torch.tanh(logits.float() / cap)).to(logits.dtype)
        return logits

    @property
    def head_weight(self) -> Tensor:
        """(V, D): row v scores token v."""
        return self.embedding.weight if self.head is None else self.head.weight

    def num_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, seq_len: int, *, causal: bool = False) -> int:
        """See :func:`lightning_llm.models.flops.flops_per_token`."""
        return flops_per_token(self.config, seq_len, causal=causal)

    def flops_by_part(self, seq_len: int) -> dict[str, int]:
        """See :func:`lightning_llm.models.flops.flops_by_part`."""
        return flops_by_part(self.config, seq_len)

    def aux_loss(self) -> Tensor | None:
        """Weighted sum of the layers' load-balancing losses in the last training forward.

        A float32 scalar to add to the mean loss per token; None for a dense model, and after a
        forward in evaluation mode.
        """
        if not self._router_losses:
            return None
        return self.config.router_aux_loss_weight * torch.stack(self._router_losses).sum()

    def _check_sizes(self, batch: int, length: int, cache: KVCache | None) -> None:
        limit, held, whose = self.config.max_seq_len, 0, "the model's"
        if cache is not None:
            limit, held, whose = cache.max_seq_len, cache.length, "the cache's"
            if batch != cache.batch_size:
                raise InvalidValueError(
                    f"input_ids has {batch} sequences, the cache {cache.batch_size}; create it "
                    f"with batch_size={batch}"
                )
        if held + length > limit:
            tokens = f"{held} cached and {length} new tokens" if held else f"{length} tokens"
            raise InvalidValueError(
                f"{tokens} exceed {whose} max_seq_len={limit}; use shorter sequences or a larger "
                "max_seq_len"
            )

    def _embed(self, input_ids: Tensor, position_ids: Tensor | None, start: int) -> Tensor:
        hidden = self.embedding(input_ids)
        if self.config.embedding_scale != 1.0:
            hidden = hidden * self.config.embedding_scale
        length = input_ids.shape[1]
        if self.position_embedding is not None:
            if position_ids is None:
                hidden = hidden + self.position_embedding.weight[start : start + length]
            else:
                hidden = hidden + self.position_embedding(position_ids)
        elif self._sinusoidal is not None:
            if position_ids is None:
                table = self._sinusoidal.slice(start, length, hidden.device)
            else:
                table = self._sinusoidal.lookup(position_ids)
            hidden = hidden + sinusoidal_embedding(*table).to(hidden.dtype)
        if self.config.residual_scalars:  # so that its share does not hang on the table's scale
            hidden = F.rms_norm(hidden, hidden.shape[-1:], eps=self.config.norm_eps)
        dropout = self.config.dropout
        return F.dropout(hidden, dropout, self.training) if dropout else hidden

    def _token_values(self, layer: int, input_ids: Tensor) -> Tensor | None:
        if not self.config.has_value_embedding(layer):
            return None
        assert self.value_embeddings is not None
        values: Tensor = self.value_embeddings[str(layer)](input_ids)
        return values


def _rotation(
    table: PositionTable, hidden: Tensor, position_ids: Tensor | None, start: int
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B or 1, T, 1, 1, R / 2), broadcast over groups and their heads."""
    if position_ids is None:
        cos, sin = table.slice(start, hidden.shape[1], hidden.device)
        cos, sin = cos[None], sin[None]
    else:
        cos, sin = table.lookup(position_ids)
    return cos[:, :, None, None], sin[:, :, None, None]


def _value_embeddings(config: TransformerConfig) -> nn.ModuleDict | None:
    """A table (V, G * Dh) for each layer that has one, by the number of the layer."""
    if not config.value_embeddings:
        return None
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    width = config.n_kv_heads * config.head_dim
    return nn.ModuleDict(
        {
            str(layer): Embedding(config.vocab_size, width, init_std=config.init_std)
            for layer in range(config.n_layers)
            if config.has_value_embedding(layer)
        }
    )
