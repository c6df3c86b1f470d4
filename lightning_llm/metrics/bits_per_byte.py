"""Bits per byte: a likelihood that can be compared between tokenizers."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_llm.metrics._sums import Number, RatioOfSums


class BitsPerByte(RatioOfSums):
    r"""Bits per byte of text, :math:`\sum \mathrm{NLL} / (\ln 2 \cdot \sum \mathrm{bytes})`.

    Perplexity depends on how the tokenizer cuts the text; dividing by the bytes of the text
    instead of the tokens does not (Gao et al., "The Pile", 2020, section 3.1). In float64, over
    all batches and ranks. ``compute`` before any byte was counted is NaN.
    """

    def update(self, nll_sum: Number, num_bytes: Number) -> None:
        """Add a batch.

        Args:
            nll_sum: Sum of the negative log-likelihoods of the targets, in nats; a tensor of any
                floating dtype and device (summed if not 0-dim) or a Python number.
            num_bytes: UTF-8 bytes of text the targets stand for (special tokens: 0).
        """
        self._accumulate(nll_sum, num_bytes)

    def compute(self) -> Tensor:
        """Bits per byte over everything seen, as a 0-dim float64 tensor; NaN for no bytes."""
        return self.numerator / (self.denominator * math.log(2.0))
