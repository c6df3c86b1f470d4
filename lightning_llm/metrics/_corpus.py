"""Corpus-level scores of sacrebleu as sums that any number of processes can add up."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_llm.errors import InvalidTypeError, InvalidValueError, UnsupportedError

References = Sequence[str] | Sequence[Sequence[str]]

_NO_REFERENCES_YET = 2**31


class CorpusScore(Metric):
    """A sacrebleu metric over a corpus that arrives in batches, on several ranks.

    What sacrebleu sums over the segments before it computes the score (n-gram matches and counts,
    lengths) is kept as int64 and summed over ranks, so the score equals that of sacrebleu on the
    whole corpus, however it was cut.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    statistics: Tensor  # (S,) int64, sacrebleu's order
    fewest_references: Tensor
    most_references: Tensor

    def __init__(self, num_statistics: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._scorer: Any = self._build()
        self._num_references: int | None = None  # over all ranks, once computed
        self.add_state("statistics", torch.zeros(num_statistics, dtype=torch.int64), "sum")
        self.add_state("fewest_references", torch.tensor(_NO_REFERENCES_YET), "min")
        self.add_state("most_references", torch.tensor(0), "max")

    @abstractmethod
    def _build(self) -> Any:
        """The sacrebleu metric; a plain function of the arguments."""

    def update(self, predictions: Sequence[str], references: References) -> None:
        """Add segments.

        Args:
            predictions: One text per segment, detokenized.
            references: One text per segment, or one list of texts per segment; lists may differ
                in length.

        Raises:
            TypeError: If something else than strings is found.
            ValueError: If the numbers of predictions and references differ, or a segment has no
                reference.
        """
        per_segment = _checked(predictions, references)
        self._num_references = None
        if not per_segment:
            return
        counts = [len(texts) for texts in per_segment]
        most = max(counts)
        # sacrebleu wants the i-th references of all segments together, None where there is none.
        streams = [
            [texts[i] if i < len(texts) else None for texts in per_segment] for i in range(most)
        ]
        rows = self._scorer._extract_corpus_statistics(list(predictions), streams)
        device = self.statistics.device
        self.statistics = self.statistics + torch.tensor(rows, device=device).sum(0)
        self.fewest_references = self.fewest_references.clamp(max=min(counts))
        self.most_references = self.most_references.clamp(min=most)

    def compute(self) -> Tensor:
        """The score, 0 to 100, as a 0-dim float64 tensor; NaN if there was no segment."""
        self._num_references = self._count_references()
        score = math.nan
        if self._num_references != 0:
            score = self._scorer._aggregate_and_compute([self.statistics.tolist()]).score
        device = "cpu" if self.device.type == "mps" else self.device
        return torch.tensor(score, dtype=torch.float64, device=device)

    @property
    def signature(self) -> str:
        """sacrebleu's signature of the score, to be reported with it.

        The number of references in it is that over all ranks after ``compute``, and that of this
        rank before.

        Raises:
            RuntimeError: Before the first segment, when the number of references is not known.
        """
        number = self._num_references
        if number is None:
            number = self._count_references()
        if number == 0:
            raise UnsupportedError(
                "the signature tells the number of references; call update first"
            )
        self._scorer.num_refs = number
        return str(self._scorer.get_signature())

    def _count_references(self) -> int:
        """References per segment as sacrebleu tells it: -1 if it varies; 0 if there are none."""
        fewest, most = int(self.fewest_references), int(self.most_references)
        return most if fewest == most or most == 0 else -1

    def reset(self) -> None:
        """Forget all segments."""
        super().reset()
        self._num_references = None

    def __getstate__(self) -> dict[str, Any]:
        # Tokenizers that wrap a C++ library can be neither pickled nor copied.
        return {key: value for key, value in super().__getstate__().items() if key != "_scorer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scorer = self._build()


def _checked(predictions: Sequence[str], references: References) -> list[list[str]]:
    """References as one list per segment."""
    for name, texts in (("predictions", predictions), ("references", references)):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InvalidTypeError(f"{name} must be a list, not {type(texts).__name__}")
    if len(predictions) != len(references):
        raise InvalidValueError(
            f"got {len(predictions)} predictions and {len(references)} entries of references; "
            "there must be one entry, a text or a list of texts, per prediction"
        )
    per_segment = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    for index, (prediction, texts) in enumerate(zip(predictions, per_segment)):
        if not texts:
            raise InvalidValueError(f"segment {index} has no reference; give it at least one text")
        for text in (prediction, *texts):
            if not isinstance(text, str):
                raise InvalidTypeError(f"segment {index} holds {text!r}, which is not a string")
    return per_segment
