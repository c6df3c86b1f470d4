"""From the vectors of words to those of a tokenizer's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_llm.data.tokenizer import encode_texts, vocabulary_size
from lightning_llm.data.tokenizer_encoding import BYTE_OF_CHARACTER
from lightning_llm.interop.word_vectors.reading import Words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Where Chinese, Japanese and their neighbours begin: no space stands before such a word.
_FIRST_UNSPACED = "\u2e80"


class TokenVectors(NamedTuple):
    """What a file says about a vocabulary.

    Attributes:
        vectors: ``(V, width) float32``; 0 where nothing is known.
        exact: ``(V,) bool``: the token is a word of the file.
        composed: ``(V,) bool``: the token is part of words of the file.
        num_words: Words read.
    """

    vectors: npt.NDArray[np.float32]
    exact: npt.NDArray[np.bool_]
    composed: npt.NDArray[np.bool_]
    num_words: int


def token_vectors(batches: Iterable[Words], tokenizer: PreTrainedTokenizerFast) -> TokenVectors:
    """Map words onto the vocabulary.

    A token that is a word, but for the space before it, gets that word's vector: of the same
    spelling, else in lower case, as most GloVe files are. Where words are cut into pieces (BPE,
    WordPiece, Unigram), a piece gets the mean of the vectors of all words of the file that the
    tokenizer cuts into it and others; a piece that only continues words does so even if it is
    spelled like a word. Of a word that occurs twice the first counts.

    Args:
        batches: Words of a file.
        tokenizer: Its special tokens get nothing.
    """
    size = vocabulary_size(tokenizer)
    pieces = type(tokenizer.backend_tokenizer.model).__name__ != "WordLevel"
    same, lower = _spellings(tokenizer, pieces)
    vectors = sums = np.zeros((0, 0), np.float32)
    # 0: nothing, 1: a word in lower case, 2: the word itself
    rank = np.zeros(size, np.int8)
    counts = np.zeros(size, np.int64)
    num_words = 0
    for words, values in batches:
        if not vectors.size:
            vectors = np.zeros((size, values.shape[1]), np.float32)
            sums = np.zeros_like(vectors) if pieces else sums
        num_words += len(words)
        for row, word in enumerate(words):
            for level, known in ((2, same), (1, lower)):
                for index in known.get(word, ()):
                    if rank[index] < level:
                        vectors[index], rank[index] = values[row], level
        if pieces:
            _add(sums, counts, words, values, tokenizer)
    exact = rank > 0
    composed = ~exact & (counts > 0)
    if composed.any():
        vectors[composed] = sums[composed] / counts[composed, None]
    return TokenVectors(vectors, exact, composed, num_words)


def _add(
    sums: npt.NDArray[np.float32],
    counts: npt.NDArray[np.int64],
    words: list[bytes],
    values: npt.NDArray[np.float32],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Add each word's vector to the tokens that the tokenizer cuts it into, once to each."""
    texts = [word.decode("utf-8", "replace") for word in words]
    texts = [text if text[:1] >= _FIRST_UNSPACED else f" {text}" for text in texts]
    encoded = [np.unique(ids) for ids in encode_texts(tokenizer, texts)]
    ids = np.concatenate(encoded)
    rows = np.repeat(np.arange(len(words)), [len(some) for some in encoded])
    np.add.at(sums, ids, values[rows])
    np.add.at(counts, ids, 1)


def _spellings(
    tokenizer: PreTrainedTokenizerFast, pieces: bool
) -> tuple[dict[bytes, list[int]], dict[bytes, list[int]]]:
    """Return the ids by the words they are: as spelled, and in lower case."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    byte_level = '"ByteLevel"' in json.dumps(decoder)
    special = {
        index
        for index, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    same: dict[bytes, list[int]] = {}
    lower: dict[bytes, list[int]] = {}
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        text = _text(token, byte_level)
        word = text.strip(b" ")
        inner = text == word and word[:1].isalnum() and word.isascii()
        if not word or token.startswith("##") or (pieces and inner):
            continue
        same.setdefault(word, []).append(index)
        lower.setdefault(word.decode("utf-8", "replace").lower().encode(), []).append(index)
    return same, lower


def _text(token: str, byte_level: bool) -> bytes:
    """Return the UTF-8 that a token stands for."""
    if byte_level and all(character in BYTE_OF_CHARACTER for character in token):
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    return token.replace("▁", " ").encode()
