"""Corpus chrF, equal to sacrebleu's."""

from __future__ import annotations

from typing import Any

from lightning_llm.errors import InvalidValueError
from lightning_llm.metrics._corpus import CorpusScore


class CorpusCHRF(CorpusScore):
    """chrF (Popović, 2015) and chrF++ (Popović, 2017), equal to ``sacrebleu.corpus_chrf``.

    An F-score over character n-grams: no tokenizer, and kinder than BLEU to rich morphology.

    Args:
        char_order: Longest character n-gram.
        word_order: Longest word n-gram; 2 makes it chrF++.
        beta: How much more recall counts than precision.
        lowercase: Ignore case.
        whitespace: Count whitespace as characters.

    Raises:
        ValueError: If ``char_order`` < 1 or ``word_order`` < 0.
    """

    def __init__(
        self,
        *,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        **kwargs: Any,
    ) -> None:
        if char_order < 1 or word_order < 0:
            raise InvalidValueError(
                f"char_order={char_order} must be at least 1, word_order={word_order} at least 0"
            )
        self._options: dict[str, Any] = {
            "char_order": char_order,
            "word_order": word_order,
            "beta": beta,
            "lowercase": lowercase,
            "whitespace": whitespace,
        }
        super().__init__(3 * (char_order + word_order), **kwargs)

    def _build(self) -> Any:
        from sacrebleu.metrics import CHRF

        return CHRF(**self._options)
