"""Corpus perplexity from sums."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_llm.metrics._sums import Number, RatioOfSums


class Perplexity(RatioOfSums):
    r"""Perplexity of a corpus, :math:`\exp(\sum \mathrm{NLL} / \sum \mathrm{tokens})` in float64.

    Both sums run over all batches and ranks and are divided once, so the value does not depend on
    how the corpus was cut into batches, on padding, or on the number of ranks. It is finite while
    the mean negative log-likelihood is below about 709 nats.

    Example::

        perplexity = Perplexity()
        for hidden, labels in batches:
            nll_sum = linear_cross_entropy(hidden, weight, labels, reduction="sum")
            perplexity.update(nll_sum, (labels != -100).sum())
        perplexity.compute()  # 0-dim float64 tensor

    ``compute`` before any token was counted is NaN: there is no perplexity of nothing.
    """

    def update(self, nll_sum: Number, num_tokens: Number) -> None:
        """Add a batch.

        Args:
            nll_sum: Sum of the negative log-likelihoods of the targets, in nats; a tensor of any
                floating dtype and device (summed if not 0-dim) or a Python number.
            num_tokens: How many targets were summed.
        """
        self._accumulate(nll_sum, num_tokens)

    def compute(self) -> Tensor:
        """The perplexity over everything seen, as a 0-dim float64 tensor; NaN for no tokens."""
        return torch.exp(self.numerator / self.denominator)
