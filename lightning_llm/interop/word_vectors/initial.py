"""Initial values of an embedding from a file of word vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_llm.errors import InvalidValueError
from lightning_llm.interop.word_vectors.reading import read_word_vectors
from lightning_llm.interop.word_vectors.tokens import token_vectors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Coverage:
    """How much of a vocabulary has a vector.

    Attributes:
        exact: Tokens that are words of the file.
        composed: Tokens that are parts of words of the file.
        vocab_size: All tokens.
        num_words: Words in the file.
        of_corpus: Share of the corpus's tokens that have a vector; None if there was no corpus.
    """

    exact: int
    composed: int
    vocab_size: int
    num_words: int
    of_corpus: float | None = None

    @property
    def of_vocabulary(self) -> float:
        """Share of the vocabulary that has a vector."""
        return (self.exact + self.composed) / self.vocab_size

    def __str__(self) -> str:
        corpus = "" if self.of_corpus is None else f", {self.of_corpus:.1%} of the corpus"
        return (
            f"{self.exact} tokens are words and {self.composed} parts of words among "
            f"{self.num_words}: {self.of_vocabulary:.1%} of the vocabulary{corpus}"
        )


@torch.no_grad()
def load_word_vectors(
    weight: Tensor,
    path: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    std: float | None = None,
    seed: int = 0,
    token_counts: npt.NDArray[np.int64] | None = None,
) -> Coverage:
    """Write the vectors of a file into an embedding, in place.

    See `lightning_llm.interop.word_vectors.read_word_vectors` for the formats. Vectors are centred
    (their common mean says nothing about a word; Mu & Viswanath, 2018), brought to the width of the
    embedding, and scaled to its standard deviation, so that training starts at the scale the model
    was made for. Wider vectors are projected on their principal components, which keep most of the
    variance; narrower ones are turned by a random orthogonal map, which keeps all distances and
    spreads them over all dimensions. Rows without a vector stay as they are.

    Args:
        weight: The embedding, ``(V, D)``, any floating dtype.
        path: The file.
        tokenizer: Says which row is which word.
        std: Standard deviation of the new rows; that of ``weight`` if not given.
        seed: Of the random map.
        token_counts: How often each id occurs in the corpus, for the report.

    Raises:
        ValueError: The file is malformed, no token has a vector, or the embedding has fewer rows
            than the tokenizer has ids.
    """
    found = token_vectors(read_word_vectors(path), tokenizer)
    known = found.exact | found.composed
    rows, dim = weight.shape
    if len(known) > rows:
        raise InvalidValueError(
            f"the embedding has {rows} rows, the tokenizer {len(known)} ids. Raise the model's "
            "vocab_size, or use its own tokenizer."
        )
    if not known.any():
        raise InvalidValueError(
            f"{path}: none of its {found.num_words} words is in the vocabulary. Use vectors of the "
            "corpus's language, or a tokenizer of words (algorithm: word)."
        )
    scale = float(weight.float().std()) if std is None else std
    values = _fitted(found.vectors[known].astype(np.float64), dim, seed)
    values *= scale / max(values.std(), 1e-12)
    index = torch.from_numpy(np.flatnonzero(known)).to(weight.device)
    weight[index] = torch.from_numpy(values).to(weight.device, weight.dtype)
    of_corpus = None
    if token_counts is not None:
        counts = np.asarray(token_counts)[: len(known)]
        of_corpus = float(counts[known[: len(counts)]].sum() / max(1, counts.sum()))
    return Coverage(
        int(found.exact.sum()), int(found.composed.sum()), len(known), found.num_words, of_corpus
    )


def _fitted(values: npt.NDArray[np.float64], dim: int, seed: int) -> npt.NDArray[np.float64]:
    """Centre vectors and bring them to ``dim`` columns."""
    values = values - values.mean(axis=0)
    width = values.shape[1]
    if width == dim:
        return values
    if width > dim:
        _, components = np.linalg.eigh(values.T @ values)
        components = components[:, ::-1][:, :dim]
        # Eigenvectors have no sign of their own; the largest entry shall be positive.
        largest = components[np.abs(components).argmax(axis=0), np.arange(dim)]
        return values @ (components * np.sign(largest))
    turn, upper = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, width)))
    return values @ (turn * np.sign(np.diag(upper))).T
