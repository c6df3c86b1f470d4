"""Train a tokenizer on the corpus: the vocabulary is built here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_llm.data.readers_base import cut_text
from lightning_llm.data.tokenizer_encoding import BYTE_OF_CHARACTER
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from lightning_llm.data.tokenizer import TokenizerSpec

EOS_TOKEN = "<|endoftext|>"
UNK_TOKEN = "<|unk|>"
CONTINUATION = "##"

_LOG = logging.getLogger(__name__)
_CHUNK_CHARACTERS = 1 << 14

# Pre-tokens of the byte-level algorithms, after GPT-2's and GPT-4's: letters with what precedes
# them, numbers by three digits, runs of punctuation. Indentation joins its line end, which takes
# 3 % fewer tokens on Python code.
_BYTE_LEVEL_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+(?:[ \t]+(?=[ \t]))?"
    r"|\s+(?!\S)"
    r"|\s+"
)
# Words of `word` and `wordpiece`: with the space before them, so that joining gives the text back.
# Scripts written without spaces go character by character.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD_SPLIT = (
    rf"[{_UNSPACED}]"
    rf"| ?[[\p{{L}}\p{{M}}\p{{N}}_]&&[^{_UNSPACED}]]{{1,64}}"
    r"| ?[^\s\p{L}\p{M}\p{N}_]"
    r"|\r?\n"
    r"|[^\S\r\n]{1,64}(?!\S)"
    r"|[^\S\r\n]{1,64}(?=[^\S\r\n])"
    r"|\s"
)


def train_tokenizer(spec: TokenizerSpec, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer of ``spec``.

    The result is a function of ``spec`` and ``texts`` alone, but for ``unigram``: its trainer goes
    through a hash table in random order, so that two trainings may differ a little.
    ``save_pretrained`` writes it so that ``transformers.AutoTokenizer`` loads it.

    Args:
        spec: Algorithm and sizes.
        texts: The corpus, read once; a long document may come in pieces.

    Raises:
        ValueError: ``spec`` names a pretrained tokenizer, or there is no text to learn from.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    if spec.pretrained is not None:
        raise ValueError(
            f"TokenizerSpec(pretrained={spec.pretrained!r}) is to be loaded, not trained: use "
            "load_tokenizer."
        )
    lossless = spec.algorithm in ("bpe", "unigram", "byte")
    specials = [EOS_TOKEN, *([] if lossless else [UNK_TOKEN]), *spec.special_tokens]
    backend = _BUILDERS[spec.algorithm](spec, specials, texts)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    size = backend.get_vocab_size()
    if spec.vocab_size is not None and size < spec.vocab_size:
        _LOG.warning(
            "The corpus gives %d of the %d ids of vocab_size: that is all there is to learn "
            "(algorithm=%r).",
            size,
            spec.vocab_size,
            spec.algorithm,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        unk_token=None if lossless else UNK_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def sample_evenly(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Return at most ``max_bytes`` of text, spread evenly over the corpus, in one pass.

    Long texts are cut into chunks, and every k-th chunk is kept; each time the bound is crossed, k
    doubles and every other chunk held is dropped. No random numbers, no length known in advance.
    """
    kept: list[str] = []
    held, stride = 0, 1
    for index, chunk in enumerate(_chunks(texts)):
        if index % stride:
            continue
        kept.append(chunk)
        held += len(chunk.encode())
        while held > max_bytes and len(kept) > 1:
            kept, stride = kept[::2], stride * 2
            held = sum(len(text.encode()) for text in kept)
    return kept


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if text:
            yield from cut_text(text, _CHUNK_CHARACTERS)


def _normalizer(spec: TokenizerSpec) -> Any:
    from tokenizers import normalizers

    return {None: None, "nfc": normalizers.NFC(), "nfkc": normalizers.NFKC()}[spec.normalization]


def _sample(spec: TokenizerSpec, texts: Iterable[str]) -> list[str]:
    sample = sample_evenly(texts, spec.max_training_bytes)
    if not sample:
        raise InvalidValueError("no text to train the tokenizer on: every document is empty.")
    return sample


def _fit(backend: Tokenizer, trainer: Any, sample: list[str]) -> Tokenizer:
    # Batches, so that the workers do not wait for Python at every text.
    batches = (sample[i : i + 256] for i in range(0, len(sample), 256))
    backend.train_from_iterator(batches, trainer)
    return backend


def _byte_level(model: Any, spec: TokenizerSpec) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.normalizer = _normalizer(spec)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_BYTE_LEVEL_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _build_bpe(spec: TokenizerSpec, specials: list[str], texts: Iterable[str]) -> Tokenizer:
    from tokenizers import models, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=spec.max_vocab_size,
        min_frequency=spec.min_frequency,
        special_tokens=specials,
        # Without the whole alphabet, bytes the corpus did not show would vanish in silence.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _fit(_byte_level(models.BPE(), spec), trainer, _sample(spec, texts))


def _build_unigram(spec: TokenizerSpec, specials: list[str], texts: Iterable[str]) -> Tokenizer:
    from tokenizers import models, pre_tokenizers, trainers

    trainer = trainers.UnigramTrainer(
        vocab_size=spec.max_vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _fit(_byte_level(models.Unigram(), spec), trainer, _sample(spec, texts))


def _build_wordpiece(spec: TokenizerSpec, specials: list[str], texts: Iterable[str]) -> Tokenizer:
    """Learn the pieces in two passes, so that two trainings agree.

    The trainer numbers the letters that continue a word in the order of a randomly seeded hash
    table, and breaks ties between merges by these numbers. The first pass finds the letters, the
    second gets them in order.
    """
    from tokenizers import decoders, models, trainers

    sample = _sample(spec, texts)
    # A letter takes up to two ids, one to begin a word and one to continue it, and the trainer
    # drops none to keep to vocab_size.
    letters_at_most = max(1, (spec.max_vocab_size - len(specials)) // 2)

    def vocabulary(size: int, fixed: list[str]) -> dict[str, int]:
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=spec.min_frequency,
            special_tokens=fixed,
            limit_alphabet=letters_at_most,
            continuing_subword_prefix=CONTINUATION,
            show_progress=False,
        )
        return _fit(
            _words(models.WordPiece(unk_token=UNK_TOKEN), spec), trainer, sample
        ).get_vocab()

    letters = sorted(piece for piece in vocabulary(0, []) if piece.startswith(CONTINUATION))
    vocab = vocabulary(spec.max_vocab_size, specials + letters)
    backend = _words(models.WordPiece(vocab, unk_token=UNK_TOKEN), spec)
    backend.decoder = decoders.Sequence([decoders.Replace(CONTINUATION, ""), decoders.Fuse()])
    return backend


def _build_word(spec: TokenizerSpec, specials: list[str], texts: Iterable[str]) -> Tokenizer:
    from tokenizers import models, trainers

    trainer = trainers.WordLevelTrainer(
        vocab_size=spec.max_vocab_size,
        min_frequency=spec.min_frequency,
        special_tokens=specials,
        show_progress=False,
    )
    model = models.WordLevel(unk_token=UNK_TOKEN)
    return _fit(_words(model, spec), trainer, _sample(spec, texts))


def _words(model: Any, spec: TokenizerSpec) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.normalizer = _normalizer(spec)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD_SPLIT), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _build_char(spec: TokenizerSpec, specials: list[str], texts: Iterable[str]) -> Tokenizer:
    """One id for each character of the corpus, in code-point order after the special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    normalizer = _normalizer(spec)
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for text in _chunks(texts):
        normal = normalizer.normalize_str(text) if normalizer else text
        points = np.frombuffer(normal.encode("utf-32-le"), "<u4")
        seen, times = np.unique(points, return_counts=True)
        counts[seen] += times
    if not counts.any():
        raise InvalidValueError("no text to train the tokenizer on: every document is empty.")
    room = spec.max_vocab_size - len(specials)
    frequent = np.argsort(-counts, kind="stable")[: min(room, np.count_nonzero(counts))]
    tokens = [*specials, *map(chr, np.sort(frequent))]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=UNK_TOKEN))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _build_byte(spec: TokenizerSpec, specials: list[str], texts: Iterable[str]) -> Tokenizer:
    """Id b for byte b, and the special tokens from 256 on; nothing is learned from the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = BYTE_OF_CHARACTER | {token: 256 + index for index, token in enumerate(specials)}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.normalizer = _normalizer(spec)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


_BUILDERS = {
    "bpe": _build_bpe,
    "unigram": _build_unigram,
    "wordpiece": _build_wordpiece,
    "word": _build_word,
    "char": _build_char,
    "byte": _build_byte,
}
