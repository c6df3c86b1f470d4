"""Validation and test exact match and F1 of generated answers, for any LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_llm.callbacks._continuations import GenerateFn
from lightning_llm.callbacks._text_scores import TextScoreMonitor
from lightning_llm.metrics import ExactMatch, TokenF1
from lightning_llm.metrics.qa import AnswerTokens


class AnswerMonitor(TextScoreMonitor):
    """Logs ``val_exact_match`` and ``val_f1`` (``test_…``) of any LightningModule, 0 to 100.

    Answers are compared as SQuAD does: without case, punctuation and articles, and with the best
    of several references. Where the texts come from, how they are generated and what else is
    logged is told by `lightning_llm.callbacks.BLEUMonitor`; samples go to
    ``answer_samples.jsonl``.

    Args:
        tokenize: ``"space"``: words are what white space separates, as in SQuAD. ``"zh"``: each
            Chinese character is a word too, and Chinese punctuation is left out.
        generate_fn: ``generate_fn(pl_module, prompts, **options) -> list[str]``, used instead of
            the module's ``generate``.
        max_new_tokens: Longest answer, where ``generate`` has that option.
        num_beams: Above 1, asks for beam search.
        stop: Strings that end an answer.
        generate_options: More options for ``generate``.
        max_samples: Score this many samples at most (per dataloader), the first of the data.
        batch_size: Prompts continued at a time; by default as many as the largest batch has.
        num_logged_samples: Rows of the table.

    Raises:
        ValueError: If ``tokenize`` is unknown, or a number is out of range.
    """

    def __init__(
        self,
        tokenize: AnswerTokens = "space",
        *,
        generate_fn: GenerateFn | None = None,
        max_new_tokens: int = 32,
        num_beams: int = 1,
        stop: Sequence[str] | None = None,
        generate_options: Mapping[str, Any] | None = None,
        max_samples: int | None = None,
        batch_size: int | None = None,
        num_logged_samples: int = 8,
    ) -> None:
        super().__init__(
            {"exact_match": ExactMatch(tokenize), "f1": TokenF1(tokenize)},
            "answer",
            generate_fn=generate_fn,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            stop=stop,
            generate_options=generate_options,
            max_samples=max_samples,
            batch_size=batch_size,
            num_logged_samples=num_logged_samples,
        )
