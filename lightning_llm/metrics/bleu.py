"""Corpus BLEU, equal to sacrebleu's."""

from __future__ import annotations

from typing import Any

from lightning_llm.errors import InvalidValueError, MissingPackageError
from lightning_llm.metrics._corpus import CorpusScore


class CorpusBLEU(CorpusScore):
    """BLEU of a corpus (Papineni et al., 2002), equal to ``sacrebleu.corpus_bleu``.

    Example::

        bleu = CorpusBLEU()
        bleu.update(["the cat sat"], ["the cat sat down"])
        bleu.update(["a dog"], [["a dog", "one dog"]])  # several references
        bleu.compute()    # 0-dim float64 tensor, 0 to 100
        bleu.signature    # 'nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:...'

    Args:
        tokenize: sacrebleu's tokenizer: ``"13a"``, ``"intl"``, ``"zh"``, ``"char"``, ``"none"``;
            ``"ja-mecab"`` and ``"ko-mecab"`` need MeCab; ``"spm"``, ``"flores101"``,
            ``"flores200"`` download a model.
        lowercase: Ignore case.
        smooth_method: For n-gram orders without a match: ``"exp"``, ``"floor"``, ``"add-k"`` or
            ``"none"``.
        smooth_value: Of ``"floor"`` and ``"add-k"``; by default sacrebleu's.
        max_ngram_order: Longest n-gram.
        effective_order: Leave out orders for which the predictions are too short.

    Raises:
        ValueError: If ``tokenize`` or ``smooth_method`` is unknown, or ``max_ngram_order`` < 1.
    """

    def __init__(
        self,
        tokenize: str = "13a",
        *,
        lowercase: bool = False,
        smooth_method: str = "exp",
        smooth_value: float | None = None,
        max_ngram_order: int = 4,
        effective_order: bool = False,
        **kwargs: Any,
    ) -> None:
        self._options: dict[str, Any] = {
            "tokenize": tokenize,
            "lowercase": lowercase,
            "smooth_method": smooth_method,
            "smooth_value": smooth_value,
            "max_ngram_order": max_ngram_order,
            "effective_order": effective_order,
        }
        super().__init__(2 + 2 * max_ngram_order, **kwargs)

    def _build(self) -> Any:
        from sacrebleu.metrics import BLEU

        known = {"tokenize": BLEU.TOKENIZERS, "smooth_method": BLEU.SMOOTH_DEFAULTS}
        for name, choices in known.items():
            if self._options[name] not in choices:
                raise InvalidValueError(
                    f"{name}={self._options[name]!r} is not one of {[*choices]}"
                )
        if self._options["max_ngram_order"] < 1:
            raise InvalidValueError(
                f"max_ngram_order={self._options['max_ngram_order']} must be >= 1"
            )
        try:
            return BLEU(force=True, **self._options)  # no advice on text that looks tokenized
        except RuntimeError as error:  # of a tokenizer that has a package of its own
            raise MissingPackageError(
                f"tokenize={self._options['tokenize']!r}: {' '.join(str(error).split())}"
            ) from error
