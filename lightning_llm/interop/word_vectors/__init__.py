"""Pretrained word vectors, GloVe's and word2vec's, as a start for the embedding of any model."""

from __future__ import annotations

from lightning_llm.interop.word_vectors.callback import WordVectors
from lightning_llm.interop.word_vectors.initial import Coverage, load_word_vectors
from lightning_llm.interop.word_vectors.reading import read_word_vectors

__all__ = ["WordVectors", "load_word_vectors", "read_word_vectors", "Coverage"]
