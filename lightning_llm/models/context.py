"""A rank's share of long sequences, and how it attends to the shares of the others.

Context parallelism: ranks hold different positions of the same sequences, and gather keys and
values for their queries (Llama 3, https://arxiv.org/abs/2407.21783, section 3.3.2). A sequence is
cut into 2 N chunks, and rank r has chunks r and 2 N - 1 - r: an early one, which sees few keys, and
a late one, so that all ranks compute equally many scores.

Shapes: B batch, T tokens of a sequence, N ranks that share it, L = T / N tokens of a rank, H query
heads, G key/value heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.utils._python_dispatch import _disable_current_modes

from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class ContextShard:
    """This rank's positions among those of the ranks that share its sequences.

    Args:
        mesh: One-dimensional, of these ranks.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.size = mesh.size()
        rank = mesh.get_local_rank()
        self.chunks = (rank, 2 * self.size - 1 - rank)
        self._causal: dict[tuple[int, int], CausalBias] = {}

    def split(self, whole: Tensor) -> Tensor:
        """Take this rank's positions (B, L, ...) of (B, T, ...).

        Raises:
            ValueError: T is no multiple of 2 N.
        """
        length, parts = whole.shape[1], 2 * self.size
        if length % parts:
            raise InvalidValueError(
                f"context_parallel_size={self.size} splits sequences into {parts} chunks, but a "
                f"batch has {length} tokens in a row; make seq_len a multiple of {parts}, or pad "
                f"rows to one"
            )
        pieces = whole.chunk(parts, dim=1)
        return torch.cat([pieces[chunk] for chunk in self.chunks], dim=1)

    def positions(self, length: int, device: torch.device) -> Tensor:
        """The places (L,) int64 of this rank's tokens in their sequence."""
        size = length // 2
        steps = torch.arange(size, device=device)
        return torch.cat([steps + chunk * size for chunk in self.chunks])

    def prepare(self, length: int) -> None:
        """Make what :meth:`causal` gives for sequences of ``length``: compiled code cannot."""
        size = length // (2 * self.size)
        for chunk in self.chunks:
            shape = size, (chunk + 1) * size
            if shape not in self._causal:
                with _disable_current_modes():  # a tensor without data, which they cannot wrap
                    self._causal[shape] = causal_lower_right(*shape)

    def causal(self, n_queries: int, n_keys: int) -> CausalBias:
        """The rule, which takes no memory with flash attention, that the last query sees all."""
        return self._causal[n_queries, n_keys]

    def gather(self, share: Tensor, dim: int) -> Tensor:
        """Join what all ranks hold along ``dim``, in the order of the sequence.

        The gradients that the ranks have of the result are summed.
        """
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        spread = DTensor.from_local(share, self.mesh, [Shard(dim)], run_check=False)
        joined = spread.redistribute(placements=[Replicate()])
        parts = joined.to_local(grad_placements=[Partial()]).unflatten(dim, (self.size, 2, -1))
        early, late = parts.unbind(dim + 1)
        return torch.cat((early, late.flip(dim)), dim=dim).flatten(dim, dim + 1)

    def attend(
        self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of this rank's queries to the keys of all that come before.

        Args:
            attend: See :meth:`lightning_llm.models.attention.Attention.attend`.
            query: (B, H, L, Dh).
            key: (B, G, L, Dh).
            value: (B, G, L, Dh).
            mask: Additive, (B or 1, H or 1, L, T); None: causal.

        Returns:
            (B, H, L, Dh).
        """
        keys, values = self.gather(torch.stack((key, value)), 3)  # one exchange for both
        size = query.shape[2] // 2
        attended = []
        for place, chunk in enumerate(self.chunks):
            rows, seen = slice(place * size, (place + 1) * size), (chunk + 1) * size
            own_mask = None if mask is None else mask[:, :, rows, :seen]
            attended.append(
                attend(query[:, :, rows], keys[:, :, :seen], values[:, :, :seen], own_mask)
            )
        return torch.cat(attended, dim=2)
