"""What a batch gives to a corpus score: predictions or prompts, and references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_llm.batches import describe, field
from lightning_llm.errors import InvalidValueError


@dataclass
class Segment:
    """One row of the corpus.

    Attributes:
        source: What the output was made from; empty if the batch does not say.
        references: At least one text.
        prediction: The text to score; ``None`` until it is generated from ``prompt``.
        prompt: What to continue, if there is no prediction.
    """

    source: str
    references: list[str]
    prediction: str | None
    prompt: str | None


def segments_of(outputs: Any, batch: Any, callback: str) -> list[Segment] | None:
    """The segments of a batch; ``None`` if outputs and batch together hold no texts to score.

    Raises:
        ValueError: The numbers of texts do not match.
    """
    references = field(outputs, "references")
    if references is None:
        references = field(batch, "references")
    predictions, prompts = field(outputs, "predictions"), field(batch, "prompts")
    texts = predictions if predictions is not None else prompts
    if not _is_list(texts) or not _is_list(references):
        return None
    if len(references) != len(texts):
        name = "predictions" if predictions is not None else "prompts"
        raise InvalidValueError(
            f"{callback} got {len(texts)} {name} and {len(references)} entries of references in "
            "one batch; it needs one entry, a text or a list of texts, for each. (torch's default "
            "collate function turns lists of references inside out: keep them in a collate_fn.)"
        )
    sources = field(batch, "sources")
    if not _is_list(sources) or len(sources) != len(texts):
        sources = prompts if _is_list(prompts) and len(prompts) == len(texts) else [""] * len(texts)
    return [
        Segment(
            source=source,
            references=[reference] if isinstance(reference, str) else list(reference),
            prediction=text if predictions is not None else None,
            prompt=text if predictions is None else None,
        )
        for source, reference, text in zip(sources, references, texts)
    ]


def missing_texts(step: str, outputs: Any, batch: Any, callback: str) -> str:
    """What to do about a batch without texts."""
    return (
        f"{callback} has no texts to compare: {step} returned {describe(outputs)} and the batch "
        f"is {describe(batch)}. Return {{'predictions': list of texts, 'references': list of "
        f"texts or of lists of texts}} from {step}, or put `prompts` and `references` into the "
        "batch and let the module generate."
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
