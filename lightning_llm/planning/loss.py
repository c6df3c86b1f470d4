"""The chunks that the loss of a micro-batch is computed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_llm.losses.chunks import auto_chunk_size
from lightning_llm.planning.run import Run


@dataclass(frozen=True)
class Chunks:
    """Of the logits of one micro-batch.

    Attributes:
        number: How many.
        tokens: Of one.
        words: Of the vocabulary that a rank has the logits of.
    """

    number: int
    tokens: int
    words: int


def loss_chunks(run: Run) -> Chunks:
    """The chunks of a rank on an accelerator."""
    config, tokens = run.module.model.config, run.tokens_per_rank
    words = -(-config.vocab_size // run.parallelism.tensor)
    size = run.module.loss_chunk_size or auto_chunk_size(
        tokens, words, run.numerics.compute, "cuda"
    )
    size = min(size, tokens)
    return Chunks(-(-tokens // size), size, words)


def chunked_logits_bytes(run: Run) -> int:
    """A chunk of logits, the gradient of hidden states, and the sum of the head's gradient."""
    config, chunks = run.module.model.config, loss_chunks(run)
    width, wide = run.numerics.compute.itemsize, torch.float32.itemsize
    head = chunks.words * config.dim
    copies = head * width if run.param_dtype != run.numerics.compute else 0
    split = run.parallelism.tensor > 1
    # Where the vocabulary is split, the softmax works on float32 copies, and so is what is summed.
    a_logit = width + wide if split and width < wide else width
    of_hidden = wide if split else width
    passing = chunks.tokens * chunks.words * a_logit
    passing += run.tokens_per_rank * config.dim * of_hidden
    return int(passing + copies + head * wide)


def whole_logits_bytes(run: Run) -> int:
    """Logits in the dtype of products, in float32 for the softmax, and their gradient."""
    rows = run.tokens_per_rank * loss_chunks(run).words
    narrow = run.numerics.compute.itemsize
    return int(rows * ((narrow if narrow < 4 else 0) + 4 + 4))
