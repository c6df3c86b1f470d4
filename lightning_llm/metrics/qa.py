"""Exact match and F1 of answers, as SQuAD's evaluation script computes them."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from lightning_llm.errors import InvalidValueError
from lightning_llm.metrics._sums import RatioOfSums

AnswerTokens = Literal["space", "zh"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Ideographs with their extensions: characters that are words, not parts of words between spaces.
_IDEOGRAPH = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af])")


def answer_words(text: str, tokenize: AnswerTokens = "space") -> list[str]:
    """Return the words of an answer without case, punctuation and English articles.

    SQuAD's normalisation (Rajpurkar et al., 2016): lower case, ASCII punctuation removed, then
    "a", "an" and "the". With ``"zh"`` all Unicode punctuation is removed and each ideograph is a
    word.

    Args:
        text: The answer.
        tokenize: ``"space"`` or ``"zh"``.
    """
    text = text.lower()
    if tokenize == "zh":
        text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        text = _IDEOGRAPH.sub(r" \1 ", text)
    text = text.translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", text).split()


class _BestOfReferences(RatioOfSums):
    """The mean over questions of the best score over a question's references, 0 to 100."""

    higher_is_better = True

    def __init__(
        self,
        score: Callable[[list[str], list[str]], float],
        tokenize: AnswerTokens = "space",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if tokenize not in get_args(AnswerTokens):
            raise InvalidValueError(
                f"tokenize={tokenize!r} is not one of {[*get_args(AnswerTokens)]}"
            )
        self.tokenize, self._score = tokenize, score

    def update(
        self, predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
    ) -> None:
        """Add answers.

        Args:
            predictions: One text per question.
            references: One text, or a list of texts, per question.

        Raises:
            ValueError: The numbers differ, or a question has no reference.
        """
        if len(predictions) != len(references):
            raise InvalidValueError(
                f"got {len(predictions)} predictions and {len(references)} entries of references; "
                "there must be one entry, a text or a list of texts, per prediction"
            )
        total = 0.0
        for index, (prediction, texts) in enumerate(zip(predictions, references)):
            choices = [texts] if isinstance(texts, str) else list(texts)
            if not choices:
                raise InvalidValueError(
                    f"question {index} has no reference; give it at least one text"
                )
            words = answer_words(prediction, self.tokenize)
            total += max(self._score(words, answer_words(t, self.tokenize)) for t in choices)
        self._accumulate(total, len(predictions))

    def compute(self) -> Tensor:
        """The score, 0 to 100, as a 0-dim float64 tensor; NaN if there was no question."""
        return 100 * self.numerator / self.denominator

    @property
    def signature(self) -> str:
        """How answers were compared."""
        return f"norm:squad|tok:{self.tokenize}"


class ExactMatch(_BestOfReferences):
    """The share of answers that equal a reference after SQuAD's normalisation, 0 to 100.

    Example::

        exact = ExactMatch()
        exact.update(["The cat."], [["cat", "a dog"]])
        exact.compute()    # 100.0

    Args:
        tokenize: ``"space"``, or ``"zh"``, see `answer_words`.

    Raises:
        ValueError: If ``tokenize`` is unknown.
    """

    def __init__(self, tokenize: AnswerTokens = "space", **kwargs: Any) -> None:
        super().__init__(_equal, tokenize, **kwargs)


class TokenF1(_BestOfReferences):
    """The mean F1 of the words of answers and references after SQuAD's normalisation, 0 to 100.

    Two empty answers are equal, as in SQuAD 2.

    Args:
        tokenize: ``"space"``, or ``"zh"``, see `answer_words`.

    Raises:
        ValueError: If ``tokenize`` is unknown.
    """

    def __init__(self, tokenize: AnswerTokens = "space", **kwargs: Any) -> None:
        super().__init__(_f1, tokenize, **kwargs)


def _equal(prediction: list[str], reference: list[str]) -> float:
    return float(prediction == reference)


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    common = (Counter(prediction) & Counter(reference)).total()
    return 2 * common / (len(prediction) + len(reference))
